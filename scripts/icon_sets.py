"""Icon sets in Iconify's JSON format, and their icons as pictures.

https://iconify.design/docs/types/iconify-json.html describes the format.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from archive_inputs import missing_error
from archives import Tree
from PIL import Image

from cskd_hf.errors import UserError

PERMISSIVE = {
    *("0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0"),
    *("ISC", "MIT", "OFL-1.1", "Unlicense"),
}
STYLES = {
    *("baseline", "bold", "duo", "duotone", "fill", "filled", "light", "line", "linear", "negative", "outline"),
    *("outlined", "regular", "round", "rounded", "sharp", "solid", "thin", "twotone"),
    *("10", "12", "16", "20", "24", "24px", "28", "32", "48", "96"),
}
MIN_STYLE_SHARE = 0.05
MEMBER = re.compile(r"(?:.*/)?json/[^/]+\.json")


@dataclass(frozen=True)
class Icon:
    """An icon of a set; `name` is Iconify's, such as "mdi:home-outline", `word` what it shows, such as "home"."""

    name: str
    word: str
    svg: str


@dataclass(frozen=True)
class IconSet:
    """A set of one colour under a permissive licence, one icon per word.

    Attributes:
        author: as the set spells it; `designer` is the same for all spellings.
        licence: SPDX id.
    """

    prefix: str
    title: str
    author: str
    url: str
    licence: str
    licence_url: str
    icons: Sequence[Icon]

    @property
    def designer(self) -> str:
        return self.author.strip(" @.").casefold()


def read_sets(trees: Sequence[Tree], expected: str) -> Iterator[IconSet]:
    """The sets of one colour under a permissive licence, by prefix.

    Raises:
        UserError: no file of a set, or one in another format.
    """
    members = [(tree, name) for tree in trees for name in sorted(tree.members) if MEMBER.fullmatch(name)]
    if not members:
        raise missing_error(trees, expected, "json/*.json")
    for tree, member in members:
        try:
            content = json.loads(tree.read(member))
            info = content["info"]
            if info["license"].get("spdx") in PERMISSIVE and not info["palette"]:
                yield parse_set(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{tree.shown}: {member} is not an icon set of Iconify: {error!r}") from error


def parse_set(content: dict[str, Any]) -> IconSet:
    """A set from its JSON; of several icons for a word, the one with the shortest name, which is the set's plain style.

    Aliases are left out, which are the same pictures under other names, and so are hidden icons, which the set has
    withdrawn, and animated ones, which a rasteriser would draw as their first frame.
    """
    prefix, info = content["prefix"], content["info"]
    icons = {
        name: icon
        for name, icon in content["icons"].items()
        if not icon.get("hidden") and not re.search("<(animate|set)", icon["body"])
    }
    styles, prefixes = style_words(content), sorted(filter(None, content.get("prefixes", {})), key=len, reverse=True)
    by_word: dict[str, str] = {}
    for name in sorted(icons, key=lambda name: (len(name), name)):
        by_word.setdefault(word_of(name, styles, prefixes), name)
    size = {key: content.get(key, default) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    return IconSet(
        prefix,
        info["name"],
        info["author"]["name"],
        info["author"].get("url", ""),
        info["license"]["spdx"],
        info["license"].get("url", ""),
        [Icon(f"{prefix}:{name}", word, svg(size | icons[name])) for word, name in by_word.items()],
    )


def style_words(content: dict[str, Any]) -> set[str]:
    """The last words of names that are styles in this set.

    These are the words of the suffixes that the set declares, and those of `STYLES` in which at least one name in 20
    ends: "line" is a style in remix's "home-line", but not in Font Awesome's "chart-line".
    """
    declared = {word for suffix in content.get("suffixes", {}) for word in suffix.split("-")}
    last = Counter(name.rsplit("-", 1)[-1] for name in content["icons"])
    return declared | {word for word in STYLES if last[word] >= MIN_STYLE_SHARE * len(content["icons"])}


def word_of(name: str, styles: Iterable[str], prefixes: Iterable[str]) -> str:
    """What an icon shows: its name without the set's styles.

    Example:
        >>> word_of("outline-arrow-left-24-filled", {"24", "filled"}, ["outline"])
        'arrow-left'
    """
    for prefix in prefixes:
        if name.startswith(f"{prefix}-"):
            name = name.removeprefix(f"{prefix}-")
            break
    words = name.split("-")
    while len(words) > 1 and words[-1] in styles:
        words.pop()
    return "-".join(words)


def svg(icon: dict[str, Any]) -> str:
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" color="black" '
        f'viewBox="{icon["left"]} {icon["top"]} {icon["width"]} {icon["height"]}">{icon["body"]}</svg>'
    )


def draw(icon: Icon, size: int) -> np.ndarray:
    """(size, size) uint8 in grey: black on white, centred, with the icon's own aspect ratio and margins.

    Raises:
        UserError: resvg cannot draw the icon.
    """
    import resvg_py

    square = icon.svg.replace("<svg ", f'<svg width="{size}" height="{size}" ', 1)
    try:
        png = resvg_py.svg_to_bytes(svg_string=square, background="white", skip_system_fonts=True)
    except ValueError as error:
        raise UserError(f"resvg cannot draw {icon.name}: {error}") from error
    with Image.open(io.BytesIO(bytes(png))) as picture:
        return np.asarray(picture.convert("L"))
