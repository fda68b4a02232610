"""What a wrong value was probably meant to be, as text that can be pasted."""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cskd_hf.errors import UserError
from cskd_hf.recipe.describe import parts_of
from cskd_hf.recipe.image_sections import of_channels
from cskd_hf.recipe.yaml_io import COMMAND_LINE, parse

_WORDS = {
    **dict.fromkeys(("yes", "on", "y", "true", "t", "1"), True),
    **dict.fromkeys(("no", "off", "n", "false", "f", "0"), False),
    **dict.fromkeys(("none", "nil", "nan", ""), None),
    **{"fp32": "no", "float32": "no", "float16": "fp16", "half": "fp16", "bfloat16": "bf16"},
}
"""Words of other programs → what a recipe says."""

EXAMPLES = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "betas": [0.9, 0.999]}
"""Lists whose default is null."""


def suggest(kind: type[BaseModel], settings: Mapping[str, Any], key: str, place: str, name: str) -> str:
    """ "; write …" instead of a wrong value, or nothing: its first reading that is valid, else the default of a list.

    Args:
        kind, settings, key: the section's class, the section as read, and the wrong key.
        place: its file and line, or `COMMAND_LINE`.
        name: 'section.key'.
    """
    field, value = kind.model_fields[key], settings[key]
    parts = parts_of(field.annotation)
    words = [word for part in parts for word in (part, *get_args(part)) if get_origin(word) is Literal]
    options = [str(option) for word in words for option in get_args(word)]
    for candidate in _readings(value, key, options):
        if (candidate is not None or isinstance(value, str)) and _is_valid(kind, settings, key, candidate):
            return f"; write {paste(place, name, candidate)}"
    default = None if field.is_required() else field.get_default()
    example: Any = EXAMPLES.get(key, default)
    if key in ("mean", "std"):
        example = of_channels(example, settings.get("input_size", [3])[0])
    if example and any(get_origin(part) is tuple for part in parts):
        return f"; for example {paste(place, name, example)}"
    if value is None and default is not None:
        return f"; the default is {paste(place, name, default)}"
    return "; put text in quotes" if str in parts and not isinstance(value, str | None) else ""


def paste(place: str, name: str, value: Any) -> str:
    """The setting as one writes it there: on the command line, quoted for the shell, or in a file.

    Example:
        >>> paste("command line", "transform.scale", (0.3, 1.0)), paste("r.yaml:3", "transform.scale", (0.3, 1.0))
        ("'transform.scale=[0.3,1.0]'", 'scale: [0.3, 1.0]')
    """
    text = flow(value)
    if place != COMMAND_LINE:
        return f"{name.rpartition('.')[2]}: {text}"
    return quote(f"{name}={text.replace(', ', ',') if text.startswith('[') else text}")


def quote(text: str) -> str:
    """Quoted for the shell: in double quotes if the text has single ones and nothing that the shell would expand."""
    return f'"{text}"' if "'" in text and not re.search(r'[$`"!\\]', text) else shlex.quote(text)


def flow(value: Any) -> str:
    """YAML on one line, without quotes around text that needs none."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(flow, value))}]"
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        plain = bool(value) and parse(f"[{value}]", str)[0] == [value] and "#" not in value
    except UserError:
        plain = False
    return value if plain else "'" + value.replace("'", "''") + "'"


def close_matches(word: str, allowed: Iterable[str]) -> list[str]:
    """The allowed word that looks most like this one, if any does."""
    return difflib.get_close_matches(word, list(allowed), n=1, cutoff=0.7)


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """ "did you mean A, B, C?", with up to three words that look like this one; "" if none does."""
    close = difflib.get_close_matches(word, list(allowed), n=3)
    return f"did you mean {', '.join(close)}?" if close else ""


def _readings(value: Any, key: str, options: Sequence[str]) -> Iterator[Any]:
    """What the value may mean, the most likely first."""
    scalars = [value]
    if isinstance(value, str):
        scalars += _readings_of_text(value, options)
    elif isinstance(value, bool):
        scalars += ["no"] * (not value)
    elif isinstance(value, int | float) and math.isfinite(value):
        scalars += [value / 100] * (1 < value <= 100)  # percent
        if value == int(value):
            scalars += [int(value), bool(value), str(value)] if value in (0, 1) else [int(value), str(value)]
    for scalar in scalars:
        yield scalar
        yield [scalar]
    lists = [scalar for scalar in scalars if isinstance(scalar, list) and scalar]
    for items in lists or [[scalar] for scalar in scalars]:
        numbers = [next(_numbers(item), item) if isinstance(item, str) else item for item in items]
        yield numbers
        if len(numbers) == 1:
            yield numbers[0]
            if key in ("mean", "std"):
                yield from (numbers * channels for channels in (3, 4))
        if key == "input_size":
            channels = numbers[0] if len(numbers) > 1 and numbers[0] in (1, 3, 4) else 3
            sides = numbers[1:] if len(numbers) == 3 or [channels] == numbers[:1] else numbers
            yield [channels, sides[0], sides[-1]]


def _readings_of_text(text: str, options: Sequence[str]) -> Iterator[Any]:
    plain = text.strip(" \u00a0\"'`").replace("−", "-").replace("–", "-")
    word = plain.lower()
    yield from (option for option in options if option.lower() == word.replace("-", "_"))
    if word in _WORDS:
        yield _WORDS[word]
    parts = [part for part in re.split(r"[\s,;x×()]+", plain) if part]
    if len(parts) > 1:
        yield [next(_numbers(part), part) for part in parts]
    yield from _numbers(plain)
    yield from (_WORDS.get(similar, similar) for similar in close_matches(word, [*options, "true", "false"]))
    yield plain


def _numbers(text: str) -> Iterator[Any]:
    """The number that a text spells: 1,000  0,05  10%  3/4  1 000."""
    text = text.replace(" ", "").replace("_", "")
    if re.fullmatch(r"[-+]?[1-9]\d{0,2}(,\d{3})+(\.\d+)?", text):
        text = text.replace(",", "")
    text = re.sub(r"^([-+]?\d*),(\d+)", r"\1.\2", text)
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d\d?)?(/[1-9]\d*)?%?", text) or (
        "e" in text and "/" in text
    ):
        return
    number = Fraction(text.removesuffix("%").removesuffix(".")) / (100 if text.endswith("%") else 1)
    yield int(number) if number.denominator == 1 else float(f"{float(number):.6g}")


def _is_valid(kind: type[BaseModel], settings: Mapping[str, Any], key: str, value: Any) -> bool:
    try:
        kind.model_validate_json(json.dumps({**settings, key: value}))
    except ValidationError as error:
        return all(details["loc"][:1] != (key,) for details in error.errors(include_url=False))
    return True
