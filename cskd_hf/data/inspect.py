"""What is in the images, before hours of training: counts, headers, unreadable files, images that occur twice.

Two depths. The cheap one reads a fixed sample and compares bytes where there are few; training does it at its start.
The full one reads and decodes every image. `python -m cskd_hf.check` prints both.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from cskd_hf.data.decode import UnreadableImageError, decode
from cskd_hf.data.duplicates import content_of, digest, find_duplicates, named_splits, numbers, sample
from cskd_hf.data.hub import same_split
from cskd_hf.data.splits import Images, ImageSplit
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import entry_of
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import DataSection

DECODED = 50  # of the sampled images, those that the cheap part decodes whole
HASHED_BYTES = {"training": 1e9, "check": 5e9}  # larger data is compared by a sample
GREY = ("L", "LA", "1", "I", "I;16")


@dataclass
class Seen:
    """What the images of some rows of a split turned out to be."""

    tried: int = 0
    opened: int = 0
    decoded: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    unreadable: list[str] = field(default_factory=list)  # where and why
    fingerprints: list[np.ndarray] = field(default_factory=list)

    def add(self, other: Seen) -> None:
        self.tried += other.tried
        self.opened += other.opened
        self.decoded += other.decoded
        self.num_bytes += other.num_bytes
        self.formats += other.formats
        self.modes += other.modes
        self.sizes += other.sizes
        self.unreadable += other.unreadable
        self.fingerprints += other.fingerprints

    def all_fingerprints(self) -> np.ndarray:
        return np.concatenate(self.fingerprints)

    def widths_and_heights(self) -> np.ndarray:
        """(N, 2), in no order."""
        return np.repeat(np.array(list(self.sizes), int).reshape(-1, 2), list(self.sizes.values()), axis=0)


def look(split: ImageSplit, rows: Sequence[int], num_decoded: int, fingerprints: bool = False) -> Seen:
    """Open these rows' images by their headers, and decode the first `num_decoded` of them as training would."""
    seen = Seen()
    digests = []
    for start in range(0, len(rows), 16):  # few at a time: an image may be a photograph of 20 MB
        block = rows[start : start + 16]
        for row, image in zip(block, split.fetch(block), strict=True):
            seen.tried += 1
            try:
                content = content_of(image)
            except UnreadableImageError as error:
                seen.unreadable.append(f"{split.describe(row, image)}: {error}")
                digests.append(digest(str(image["path"]).encode()))
                continue
            seen.num_bytes += len(content)
            digests.append(digest(content))
            try:
                stored = {"bytes": content, "path": None}
                seen.opened += 1
                try:
                    with Image.open(io.BytesIO(content)) as opened:
                        seen.formats[str(opened.format)] += 1
                        seen.modes[opened.mode] += 1
                        seen.sizes[opened.size] += 1
                except Exception:  # Pillow's many, see `decode`, which says what is wrong
                    decode(stored)
                if seen.opened <= num_decoded:
                    seen.decoded += 1
                    decode(stored)
            except UnreadableImageError as error:
                seen.unreadable.append(f"{split.describe(row, image)}: {error}")
    if fingerprints:
        seen.fingerprints.append(numbers(digests))
    return seen


class Blocks(Dataset[Seen]):
    """A split for a DataLoader: item i is what the i-th 64 of its images are, all of them decoded."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return -(-len(self.split) // 64)

    def __getitem__(self, block: int) -> Seen:
        rows = range(64 * block, min(64 * block + 64, len(self.split)))
        return look(self.split, rows, len(rows), fingerprints=True)


@dataclass
class Findings:
    """What is wrong, in lines.

    Attributes:
        fatal: training on this would mean nothing, or would stop on the way.
        problems: wrong, but a person may know better.
        notes: worth knowing.
    """

    fatal: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def count(images: Images, data: DataSection, findings: Findings) -> None:
    """Rows and classes against the catalog's, and classes without images."""
    entry = entry_of(data.dataset)
    if entry is not None and images.num_classes != entry.num_classes:
        # A folder may be a part of the set on purpose; a name or a Hub id means the whole.
        (findings.problems if os.path.isdir(data.dataset) else findings.fatal).append(
            f"{data.dataset} has {entry.num_classes:,} classes, but the data has {images.num_classes:,}: is "
            f"data.label_column {data.label_column!r} the right one?"
        )
    for split, num_rows, official in against_catalog(images, data):
        if official is not None and num_rows != official:
            findings.problems.append(
                f"split {split!r} has {num_rows:,} images, but the official split of {data.dataset} has {official:,}"
            )
    for name, part in named_splits(images).items():
        present = np.bincount(part.labels, minlength=images.num_classes)
        empty = np.flatnonzero(present == 0)
        if len(empty):
            examples = ", ".join(images.train.class_names[label] for label in empty[:3]) + ", …" * (len(empty) > 3)
            line = f"no image in {name} of {len(empty):,} of {images.num_classes:,} classes: {examples}"
            (findings.notes if name == "held out" else findings.problems).append(line)
    alone = int((np.bincount(images.train.labels) == 1).sum())
    if alone:
        findings.notes.append(f"classes with one training image, which is paired with itself: {alone:,}")


def against_catalog(images: Images, data: DataSection) -> list[tuple[str, int, int | None]]:
    """(split as stored, its rows, the catalog's), a held-out share counted where it was taken from."""
    num_rows = Counter[str]()
    for split in named_splits(images).values():
        num_rows[split.name] += len(split)
    entry = entry_of(data.dataset)
    official = {} if entry is None else {same_split(name): count for name, count in entry.num_images.items()}
    return [(name, rows, official.get(same_split(name))) for name, rows in num_rows.items()]


def judge(seen: Mapping[str, Seen], recipe: Recipe, findings: Findings) -> None:
    """Unreadable, grey and small images."""
    skipped = recipe.data.on_corrupt == "skip"
    advice = "training leaves it out" if skipped else "mend or remove the file, or write data.on_corrupt=skip"
    for name, split in seen.items():
        lines = [f"{where}; {advice}" for where in split.unreadable[:5]]
        if len(split.unreadable) > 5:
            lines.append(f"{len(split.unreadable) - 5:,} more images of {name} are unreadable")
        (findings.problems if skipped else findings.fatal).extend(lines)
    _, height, width = recipe.transform.input_size
    shares = {
        "are grey": lambda split: sum(split.modes[mode] for mode in GREY),
        f"are smaller than transform.input_size, {height}×{width}, and are enlarged": lambda split: int(
            (split.widths_and_heights().min(1) < min(height, width)).sum()
        ),
    }
    for what, number in shares.items():
        if all(split.opened and number(split) == split.opened for split in seen.values()):
            findings.notes.append(f"all images seen {what}")
            continue
        told = [
            f"{100 * number(split) / split.opened:.3g} % of {name}" for name, split in seen.items() if number(split)
        ]
        if told:
            findings.notes.append(f"of the images seen, {', '.join(told)} {what}")


def look_at_samples(images: Images) -> tuple[dict[str, Seen], float]:
    """The cheap part's look, and how many bytes all images have by its estimate."""
    splits = named_splits(images)
    seen = {name: look(split, sample(split).tolist(), DECODED) for name, split in splits.items()}
    sizes = (seen[name].num_bytes / max(seen[name].opened, 1) * len(split) for name, split in splits.items())
    return seen, sum(sizes)


def cheap_problems(images: Images, recipe: Recipe) -> list[str]:
    """What training says at its start: a few seconds, whatever the size of the set.

    Raises:
        UserError: the classes are not the catalog's, or an image of the sample is unreadable and shall not be skipped.
    """
    findings = Findings()
    count(images, recipe.data, findings)
    seen, num_bytes = look_at_samples(images)
    judge(seen, recipe, findings)
    if findings.fatal:
        raise UserError("\n".join(findings.fatal))
    return findings.problems + find_duplicates(images, num_bytes, HASHED_BYTES["training"]).problems
