"""Prepare 200 classes of icons, divided by designer: npm's @iconify/json → a folder for `data.dataset`.

    npm pack @iconify/json@2.2.535
    python scripts/prepare_icons.py iconify-json-2.2.535.tgz OUT --size 32

The package (104 MB) holds 243 icon sets. Those of one colour (palette: false) under a permissive licence are read: 183
sets by 135 authors. pip install resvg-py draws them, black on white; pip install 'cskd-hf[icons]' does it, too.

Class      an icon's name without style: "home" for home-outline, home-24-filled, baseline-home. A suffix is a style
           where the set declares it or uses it in one name of 20. Aliases, hidden and animated icons are left out.
Images     at most one per set and class: the shortest name, which is the set's plain style.
Duplicates two icons are scaled to the same square around their ink; their similarity is the smaller of the
           intersections over unions of ink and of ground. Of a class's icons that are 0.9 similar, one is left, of the
           author with the most icons. Icons of two classes that are 0.95 similar are both removed. The manifest
           counts them. As drawn, at 32 pixels, 64 of the 2,631 test images are still 0.9 similar to a training image
           of their class: plain arrows, for example, that fill their frames differently. None is equal.
Classes    the 200 names with the most icons left.
Splits     by author: about 65 % of the images for training, 10 % for the hold-out set, for the temperature, and 25 % to
           test. Two authors stay together if they drew at least 20 of the classes in common and 30 % of those as near
           duplicates: one of them has redrawn the other's set.

All of these choices are [ours]. Another version of the package gives other counts, which a note reports; resvg-py 0.5.0
gives splits whose SHA-256 begin with 56fdc209, 57c70b76 and 6e2ebe30. Images are stored as PGM, for the reason given in
prepare_fashion_mnist_1k.py. manifest.json has the licence, author and address of each set: those under CC BY require
attribution.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from archives import Tree
from icon_sets import Icon, IconSet, draw, read_sets
from near_duplicates import shape_of, similar_pairs
from preparation import ImageSet, Number, prepare
from shards import InMemory, even_parts
from tqdm import tqdm

from cskd_hf.errors import UserError, run_command

EXPECTED = "npm's package @iconify/json (npm pack @iconify/json), packed or unpacked"
NUM_CLASSES = 200
NUM_WORDS = 320  # the commonest names, from which the classes are chosen
SHARES = {"train": 0.65, "holdout": 0.10, "test": 0.25}
SAME_CLASS, OTHER_CLASSES = 0.9, 0.95  # similarity of near duplicates
SHAPE_SIZE = 64  # pixels of the drawings that are compared
MIN_COMMON, MIN_SHARED = 20, 0.3  # see `related_designers`


class Drawing(NamedTuple):
    """An icon with its set and its shape."""

    icon: Icon
    icon_set: IconSet
    shape: np.ndarray

    @property
    def word(self) -> str:
        return self.icon.word

    @property
    def designer(self) -> str:
        return self.icon_set.designer


def draw_commonest(sets: Sequence[IconSet]) -> list[Drawing]:
    """The icons of the words that most designers drew, without blank ones; the designers with most icons first."""
    designers: dict[str, set[str]] = defaultdict(set)
    num_icons: Counter[str] = Counter()
    for icon_set in sets:
        num_icons[icon_set.designer] += len(icon_set.icons)
        for icon in icon_set.icons:
            designers[icon.word].add(icon_set.designer)
    words = set(sorted(designers, key=lambda word: (-len(designers[word]), word))[:NUM_WORDS])
    ordered = sorted(sets, key=lambda each: (-num_icons[each.designer], each.designer, -len(each.icons), each.prefix))
    icons = [(icon, each) for each in ordered for icon in each.icons if icon.word in words]
    shapes = (shape_of(draw(icon, SHAPE_SIZE)) for icon, _ in tqdm(icons, desc="drawing", unit=" icons", disable=None))
    return [Drawing(*icon, shape) for icon, shape in zip(icons, shapes, strict=True) if shape is not None]


def first_of_each(drawings: Sequence[Drawing], pairs: np.ndarray) -> list[int]:
    """The drawings without those that are paired with an earlier one that stays."""
    later: dict[int, list[int]] = defaultdict(list)
    for first, second in pairs.tolist():
        later[first].append(second)
    removed: set[int] = set()
    for number in range(len(drawings)):
        if number not in removed:
            removed.update(later[number])
    return [number for number in range(len(drawings)) if number not in removed]


def related_designers(drawings: Sequence[Drawing], pairs: np.ndarray, class_names: set[str]) -> dict[str, str]:
    """Designer → one name for all designers that are related to each other, directly or through others.

    Two are related if they drew at least 20 of the classes in common, 30 % of them as near duplicates.

    Args:
        pairs: near duplicates in one class.
    """
    words: dict[str, set[str]] = defaultdict(set)
    for drawing in drawings:
        words[drawing.designer].update({drawing.word} & class_names)
    shared: dict[tuple[str, str], set[str]] = defaultdict(set)
    for first, second in pairs.tolist():
        one, two = sorted((drawings[first].designer, drawings[second].designer))
        shared[one, two].update({drawings[first].word} & class_names)
    group = {designer: designer for designer in words}
    for (one, two), both in sorted(shared.items()):
        common = len(words[one] & words[two])
        if common >= MIN_COMMON and len(both) >= MIN_SHARED * common:
            old, new = group[two], group[one]
            group = {designer: new if name == old else name for designer, name in group.items()}
    return group


def split_of_groups(sizes: Counter[str]) -> dict[str, str]:
    """Group → split: the largest group first, each to the split that lacks most images of its share."""
    counts = dict.fromkeys(SHARES, 0)
    splits = {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        total = sum(counts.values()) + size
        split = max(SHARES, key=lambda split: SHARES[split] * total - counts[split])
        splits[group] = split
        counts[split] += size
    return splits


class Choice(NamedTuple):
    """The dataset.

    Attributes:
        removed: number of near duplicates, by kind.
        groups: designer → group, see `related_designers`.
    """

    class_names: list[str]
    splits: dict[str, list[Drawing]]
    removed: dict[str, int]
    groups: dict[str, str]


def choose(drawings: Sequence[Drawing]) -> Choice:
    """Remove near duplicates, choose the classes, and divide the designers."""
    pairs, similarity = similar_pairs(np.stack([drawing.shape for drawing in drawings]), SAME_CLASS)
    words = np.array([drawing.word for drawing in drawings])
    in_one_class = words[pairs[:, 0]] == words[pairs[:, 1]]
    distinct = first_of_each(drawings, pairs[in_one_class])

    num_distinct = Counter(words[distinct].tolist())
    class_names = sorted(sorted(num_distinct, key=lambda word: (-num_distinct[word], word))[:NUM_CLASSES])
    is_chosen = np.isin(words, class_names)
    candidates = {number for number in distinct if is_chosen[number]}
    in_two_classes = pairs[~in_one_class & (similarity >= OTHER_CLASSES)].tolist()
    ambiguous = {number for pair in in_two_classes if candidates.issuperset(pair) for number in pair}

    group = related_designers(drawings, pairs[in_one_class], set(class_names))
    kept = [drawings[number] for number in sorted(candidates - ambiguous)]
    split = split_of_groups(Counter(group[drawing.designer] for drawing in kept))
    splits: dict[str, list[Drawing]] = {name: [] for name in SHARES}
    for drawing in sorted(kept, key=lambda drawing: (drawing.word, drawing.icon.name)):
        splits[split[group[drawing.designer]]].append(drawing)
    removed = {"in_one_class": int(is_chosen.sum()) - len(candidates), "in_two_classes": len(ambiguous)}
    return Choice(class_names, splits, removed, group)


def attribution(choice: Choice) -> list[dict[str, Any]]:
    """An entry of the manifest per set: author, licence, addresses, split and number of images."""
    counts = Counter((each.icon_set.prefix, split) for split, drawings in choice.splits.items() for each in drawings)
    sets = {drawing.icon_set.prefix: drawing.icon_set for drawings in choice.splits.values() for drawing in drawings}
    return [
        {
            "set": prefix,
            "name": sets[prefix].title,
            "author": sets[prefix].author,
            "author_group": choice.groups[sets[prefix].designer],
            "url": sets[prefix].url,
            "licence": sets[prefix].licence,
            "licence_url": sets[prefix].licence_url,
            "split": split,
            "num_images": count,
        }
        for (prefix, split), count in sorted(counts.items())
    ]


def package_version(trees: Sequence[Tree]) -> str | None:
    """The version in package.json; None without that file, or if it has none."""
    for tree in trees:
        for member in sorted(tree.members, key=len):
            if member.rsplit("/", 1)[-1] == "package.json":
                with suppress(ValueError, KeyError, TypeError):
                    return str(json.loads(tree.read(member))["version"])
    return None


def read(trees: Sequence[Tree], shard_bytes: int, size: int) -> ImageSet:
    drawings = draw_commonest(list(read_sets(trees, EXPECTED)))
    if not drawings:
        raise UserError(f"{trees[0].shown}: no icons of one colour under a permissive licence; expected {EXPECTED}")
    choice = choose(drawings)
    label = {name: number for number, name in enumerate(choice.class_names)}
    header = b"P5 %d %d 255\n" % (size, size)
    splits = {}
    for split, drawings in choice.splits.items():
        rows = [
            (label[drawing.word], f"{drawing.icon.name}.pgm", header + draw(drawing.icon, size).tobytes())
            for drawing in drawings
        ]
        parts = even_parts(rows, [len(content) for *_, content in rows], shard_bytes)
        splits[split] = [InMemory(trees[0].path, part) for part in parts]
    facts = {
        "package": f"@iconify/json {package_version(trees)}",
        "resvg_py": version("resvg-py"),
        "removed": choice.removed,
        "sets": attribution(choice),
    }
    return ImageSet(choice.class_names, splits, facts=facts)


def main(argv: Sequence[str] | None = None) -> int:
    if find_spec("resvg_py") is None:
        raise UserError("resvg-py draws the icons and is not installed: pip install resvg-py")
    size = Number("size", 32, "PIXELS", "side of the images")
    return prepare(argv, "icons", __doc__, [], read, number=size, fixed_counts=False)


if __name__ == "__main__":
    run_command(main)
