"""Check the images before hours of training: counts, headers, unreadable files, duplicates.

At two depths: the quick one, which training runs at its start, reads a fixed sample and compares the bytes of small
data; the full one reads and decodes every image. `python -m cskd_hf.check` prints both.
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
from cskd_hf.data.duplicates import Diagnostics, digest, find_duplicates, named_splits, read_content, sample_rows
from cskd_hf.data.hub import same_split
from cskd_hf.data.splits import Images, ImageSplit
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import entry_of
from cskd_hf.recipe.sections import DataSection, TransformSection

NUM_DECODED = 50  # sampled images that the quick check decodes
HASH_LIMIT = {"training": 1e9, "check": 5e9}  # bytes; larger data is compared by a sample
GREY = ("L", "LA", "1", "I", "I;16")


@dataclass
class ImageStatistics:
    """Counts over some images of a split."""

    tried: int = 0
    opened: int = 0
    decoded: int = 0
    num_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # (width, height)
    unreadable: list[str] = field(default_factory=list)  # where and why
    digests: list[int] = field(default_factory=list)  # as `image_digests`

    def add(self, other: ImageStatistics) -> None:
        self.tried += other.tried
        self.opened += other.opened
        self.decoded += other.decoded
        self.num_bytes += other.num_bytes
        self.formats += other.formats
        self.modes += other.modes
        self.sizes += other.sizes
        self.unreadable += other.unreadable
        self.digests += other.digests

    def add_image(self, content: bytes, num_decoded: int) -> None:
        """Count an encoded image; decode it if fewer than `num_decoded` have been opened.

        Raises:
            UnreadableImageError: see `Picture`.
        """
        stored = {"bytes": content, "path": None}
        self.num_bytes += len(content)
        self.opened += 1
        try:
            with Image.open(io.BytesIO(content)) as opened:
                self.formats[str(opened.format)] += 1
                self.modes[opened.mode] += 1
                self.sizes[opened.size] += 1
        except Exception:  # Pillow raises a dozen types; `decode` words the error
            decode(stored)
        if self.opened <= num_decoded:
            self.decoded += 1
            decode(stored)

    def widths_and_heights(self) -> np.ndarray:
        """(N, 2), unordered."""
        return np.repeat(np.array(list(self.sizes), int).reshape(-1, 2), list(self.sizes.values()), axis=0)


def image_statistics(split: ImageSplit, rows: Sequence[int], num_decoded: int) -> ImageStatistics:
    """Read the headers of these rows' images and decode the first `num_decoded` of them."""
    statistics = ImageStatistics()
    for start in range(0, len(rows), 16):  # few at a time: a photograph may have 20 MB
        block = rows[start : start + 16]
        for row, image in zip(block, split.fetch(block), strict=True):
            statistics.tried += 1
            content = str(image["path"]).encode()  # stands in for a file that cannot be read
            try:
                content = read_content(image)
                statistics.add_image(content, num_decoded)
            except UnreadableImageError as error:
                statistics.unreadable.append(f"{split.describe(row, image)}: {error}")
            statistics.digests.append(digest(content))
    return statistics


class Blocks(Dataset[ImageStatistics]):
    """A split for a DataLoader: item i is the statistics of its i-th 64 images, all decoded."""

    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return -(-len(self.split) // 64)

    def __getitem__(self, block: int) -> ImageStatistics:
        rows = range(64 * block, min(64 * block + 64, len(self.split)))
        return image_statistics(self.split, rows, len(rows))


def check_counts(images: Images, data: DataSection, diagnostics: Diagnostics) -> None:
    """Compare rows and classes with the catalog's; look for classes without images."""
    entry = entry_of(data.dataset)
    if entry is not None and images.num_classes != entry.num_classes:
        # A folder may be a deliberate part of the set; a name or a Hub id means all of it.
        (diagnostics.problems if os.path.isdir(data.dataset) else diagnostics.fatal).append(
            f"{data.dataset} has {entry.num_classes:,} classes, but the data has {images.num_classes:,}: is "
            f"data.label_column {data.label_column!r} the right one?"
        )
    for split, num_rows, official in catalog_counts(images, data):
        if official is not None and num_rows != official:
            diagnostics.problems.append(
                f"split {split!r} has {num_rows:,} images, but the official split of {data.dataset} has {official:,}"
            )
    for name, part in named_splits(images).items():
        if name == "hold-out":  # among the notes of `images`
            continue
        empty = np.flatnonzero(np.bincount(part.labels, minlength=images.num_classes) == 0)
        if len(empty):
            examples = ", ".join(images.train.class_names[label] for label in empty[:3]) + ", …" * (len(empty) > 3)
            diagnostics.problems.append(
                f"no image in {name} of {len(empty):,} of {images.num_classes:,} classes: {examples}"
            )


def catalog_counts(images: Images, data: DataSection) -> list[tuple[str, int, int | None]]:
    """(split as stored, its rows, the catalog's rows); a hold-out share counts towards the split it was taken from."""
    num_rows = Counter[str]()
    for split in named_splits(images).values():
        num_rows[split.name] += len(split)
    entry = entry_of(data.dataset)
    official = {} if entry is None else {same_split(name): count for name, count in entry.num_images.items()}
    return [(name, rows, official.get(same_split(name))) for name, rows in num_rows.items()]


def check_images(
    statistics: Mapping[str, ImageStatistics], data: DataSection, transform: TransformSection, diagnostics: Diagnostics
) -> None:
    """Look for unreadable, grey and small images."""
    skipped = data.on_corrupt == "skip"
    advice = "training skips it" if skipped else "repair or remove the file, or write data.on_corrupt=skip"
    for name, split in statistics.items():
        lines = [f"{where}; {advice}" for where in split.unreadable[:5]]
        if len(split.unreadable) > 5:
            lines.append(f"{len(split.unreadable) - 5:,} more images of {name} are unreadable")
        (diagnostics.problems if skipped else diagnostics.fatal).extend(lines)
    _, height, width = transform.input_size
    counts = {
        "grey": lambda split: sum(split.modes[mode] for mode in GREY),
        f"smaller than transform.input_size, {height}×{width}, and are enlarged": lambda split: int(
            (split.widths_and_heights().min(1) < min(height, width)).sum()
        ),
    }
    for property_, count in counts.items():
        shares = {name: count(split) / split.opened for name, split in statistics.items() if split.opened}
        if len(shares) == len(statistics) and set(shares.values()) == {1.0}:
            diagnostics.notes.append(f"all images checked are {property_}")
        elif any(shares.values()):
            parts = ", ".join(f"{100 * share:.3g} % of {name}" for name, share in shares.items() if share)
            diagnostics.notes.append(f"of the images checked, {parts} are {property_}")


def sample_statistics(images: Images) -> tuple[dict[str, ImageStatistics], float]:
    """Statistics of a sample of each split, and an estimate of the bytes of all images."""
    splits = named_splits(images)
    statistics = {
        name: image_statistics(split, sample_rows(split).tolist(), NUM_DECODED) for name, split in splits.items()
    }
    sizes = (
        statistics[name].num_bytes / max(statistics[name].opened, 1) * len(split) for name, split in splits.items()
    )
    return statistics, sum(sizes)


def quick_check(images: Images, data: DataSection, transform: TransformSection) -> list[str]:
    """The problems that training reports at its start, in a few seconds for data of any size.

    Raises:
        UserError: the classes are not the catalog's, or a sampled image is unreadable under `data.on_corrupt: error`.
    """
    diagnostics = Diagnostics()
    check_counts(images, data, diagnostics)
    statistics, num_bytes = sample_statistics(images)
    check_images(statistics, data, transform, diagnostics)
    if diagnostics.fatal:
        raise UserError("\n".join(diagnostics.fatal))
    find_duplicates(images, num_bytes, HASH_LIMIT["training"], diagnostics)
    return diagnostics.problems
