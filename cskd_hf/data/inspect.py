"""Check the images before hours of training: counts, headers, unreadable files, duplicates.

At two depths: the quick one, which training runs at its start, reads a fixed sample and compares the bytes of small
data; the full one reads and decodes every image. `cskd-check` prints both.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from PIL import Image

from cskd_hf.data.decode import Conversion
from cskd_hf.data.deep import Range
from cskd_hf.data.duplicates import Diagnostics, find_duplicates, named_splits, sample_rows
from cskd_hf.data.labels import some
from cskd_hf.data.splits import Images, ImageSplit
from cskd_hf.data.statistics import ImageStatistics, image_statistics
from cskd_hf.data.transforms import conversion_of
from cskd_hf.data.values import check_values, deep_ranges, describe_values
from cskd_hf.recipe.catalog import entry_of, same_split
from cskd_hf.recipe.sections import DataSection, TransformSection

NUM_DECODED = 50  # sampled images that the quick check decodes
HASH_LIMIT = {"training": 1e9, "check": 5e9}  # bytes; larger data is compared by a sample
GREY = ("L", "LA", "1", "I", "F", "I;16", "I;16B", "I;16L", "I;16N")


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
            names = some([images.train.class_names[label] for label in empty])
            diagnostics.problems.append(
                f"no image in {name} of {len(empty):,} of {images.num_classes:,} classes: {names}"
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
        lines = [f"{where}; {advice}" for where in split.unreadable]
        (diagnostics.problems if skipped else diagnostics.fatal).extend(
            _first_five(lines, f"more images of {name} are unreadable")
        )
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
    consequence = "a sliver; the model sees almost nothing of it"
    slivers = [f"{line}: {consequence}" for split in statistics.values() for line in split.slivers]
    diagnostics.problems += _first_five(slivers, "more images are slivers")
    diagnostics.notes += metadata_notes(statistics, transform)
    check_values({name: split.values for name, split in statistics.items()}, data.value_range, diagnostics)


def _first_five(lines: list[str], rest: str) -> list[str]:
    """The first five lines, and one that counts the others."""
    return lines[:5] + ([f"{len(lines) - 5:,} {rest}"] if len(lines) > 5 else [])


def metadata_notes(statistics: Mapping[str, ImageStatistics], transform: TransformSection) -> list[str]:
    """The effects of alpha, depth, EXIF and image size."""

    def count(property_: str) -> str:
        counts = {name: getattr(split, property_) for name, split in statistics.items()}
        return ", ".join(
            f"{number:,} of {statistics[name].opened:,} {name}" for name, number in counts.items() if number
        )

    rules = []
    if alpha := count("alpha"):
        colour = transform.background if isinstance(transform.background, str) else list(transform.background)
        four = transform.input_size[0] == 4
        shown = "the fourth channel" if four else f"shown on {colour} (transform.background)"
        rules.append(f"with alpha: {alpha} images checked, {shown}")
    if deep := count("deep"):
        rules.append(f"deeper than 8 bits: {deep} images checked, read by data.value_range")
    notes = ["; ".join(rules)] * bool(rules)
    if turned := count("turned"):
        notes.append(
            f"stored turned, with an EXIF orientation: {turned} images checked; training and testing turn them, "
            "timm and torchvision do not: add PIL.ImageOps.exif_transpose"
        )
    if broken := count("broken_metadata"):
        notes.append(f"EXIF or XMP that cannot be read: {broken} images checked, shown as they are stored")
    limit = Image.MAX_IMAGE_PIXELS or np.inf
    huge = [size for split in statistics.values() for size in split.sizes if size[0] * size[1] > limit]
    if huge:
        width, height = max(huge, key=lambda size: size[0] * size[1])
        notes.append(
            f"images of more than {limit:,} pixels (PIL.Image.MAX_IMAGE_PIXELS): {len(huge)} sizes, up to "
            f"{width:,}×{height:,}; decoding takes {3e-9 * width * height:.2g} GB"
        )
    return notes


def sample_statistics(images: Images, conversion: Conversion) -> tuple[dict[str, ImageStatistics], float]:
    """Statistics of a sample of each split, and an estimate of the bytes of all images."""
    splits = named_splits(images)
    statistics = {
        name: image_statistics(split, sample_rows(split).tolist(), NUM_DECODED, conversion)
        for name, split in splits.items()
    }
    means = {name: found.num_bytes / max(found.opened, 1) for name, found in statistics.items()}
    return statistics, sum(means[name] * len(split) for name, split in splits.items())


class QuickCheck(NamedTuple):
    """What training reports at its start.

    Attributes:
        problems: one line each.
        values: the modes and pixel values of a sample of each split.
        notes: for the report, too: what others must know to read the images alike.
        deep: kind of depth → black and white, of images deeper than 8 bits.
    """

    problems: list[str]
    values: str
    notes: list[str]
    deep: dict[str, Range]


def quick_check(images: Images, data: DataSection, transform: TransformSection) -> QuickCheck:
    """Check a sample, in a few seconds for data of any size.

    Raises:
        UserError: the classes are not the catalog's, a sampled image is unreadable under `data.on_corrupt: error`, or
            deep images would come out nearly black.
    """
    diagnostics = Diagnostics()
    check_counts(images, data, diagnostics)
    statistics, num_bytes = sample_statistics(images, conversion_of(transform, data.value_range))
    check_images(statistics, data, transform, diagnostics)
    diagnostics.raise_fatal()
    find_duplicates(images, num_bytes, HASH_LIMIT["training"], diagnostics)
    found = (f"{name} {describe_values(split.values, data.value_range)}" for name, split in statistics.items())
    values = f"pixel values: {', '.join(found)}"
    deep = deep_ranges({name: split.values for name, split in statistics.items()}, data.value_range)
    notes = metadata_notes(statistics, transform) + [values] * bool(deep)
    return QuickCheck(diagnostics.problems, values, notes, deep)


def check_test_values(split: ImageSplit, data: DataSection, transform: TransformSection) -> list[str]:
    """The problems that evaluation reports about the pixel values of a sample of its images.

    Raises:
        UserError: deep images would come out nearly black.
    """
    diagnostics = Diagnostics()
    rows, conversion = sample_rows(split, NUM_DECODED).tolist(), conversion_of(transform, data.value_range)
    statistics = image_statistics(split, rows, NUM_DECODED, conversion)
    check_values({split.name: statistics.values}, data.value_range, diagnostics)
    diagnostics.raise_fatal()
    return diagnostics.problems
