"""Duplicate images, by their bytes: all of them in small data, a sample against all of train in large data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.splits import Images, ImageSplit

SAMPLE_SIZE = 200  # images per split, where reading all of them takes too long
MAX_CANDIDATES = 5_000  # training images read to compare a sample with


def named_splits(images: Images) -> dict[str, ImageSplit]:
    """The splits by their part in the run."""
    holdout = {} if images.holdout is None else {"hold-out": images.holdout}
    return {"train": images.train, **holdout, "test": images.test}


def sample_rows(split: ImageSplit, count: int = SAMPLE_SIZE) -> np.ndarray:
    """A fixed random sample of the split's rows."""
    return np.random.RandomState(0).permutation(len(split))[:count]


def read_content(image: Mapping[str, Any]) -> bytes:
    """The encoded bytes of an image.

    Raises:
        UnreadableImageError: no bytes and no readable file.
    """
    if image["bytes"] is not None:
        return image["bytes"]
    if image["path"] is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"unreadable image ({error})") from None


def digest(content: Any) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def image_digests(split: ImageSplit) -> np.ndarray:
    """(N,) uint64 digests of the images' bytes; of its path for a file that cannot be read."""
    rows, contents, paths = _stored(split)
    digests = np.empty(len(rows), np.uint64)
    for number, row in enumerate(rows.tolist()):
        buffer = contents[row].as_buffer()  # hashed in place, without a Python copy
        if buffer is not None:
            digests[number] = digest(buffer)
            continue
        path = paths[row].as_py()
        try:
            digests[number] = digest(read_content({"bytes": None, "path": path}))
        except UnreadableImageError:
            digests[number] = digest(str(path).encode())
    return digests


def _stored(split: ImageSplit) -> tuple[np.ndarray, pa.ChunkedArray, pa.ChunkedArray]:
    """Each row's position in the Arrow table, and the table's bytes and paths; a selection would copy all bytes."""
    indices = split.dataset._indices
    rows = np.arange(len(split)) if indices is None else indices.column(0).to_numpy().astype(np.int64)
    images = split.dataset.data.column("image")
    return rows, pc.struct_field(images, "bytes"), pc.struct_field(images, "path")


@dataclass(frozen=True)
class Duplicates:
    """Images with equal bytes, one line per kind with an example.

    Attributes:
        problems: an image in two splits, or under two labels.
        notes: an image twice in train under one label.
        how: what was compared.
    """

    problems: list[str]
    notes: list[str]
    how: str


def compare(splits: Mapping[str, ImageSplit], digests: Mapping[str, Sequence[int] | np.ndarray]) -> Duplicates:
    """Compare every image with every other, across splits and within train.

    Args:
        digests: split → 64-bit digests of its images.
    """
    digests = {name: np.asarray(values, np.uint64) for name, values in digests.items()}
    problems, notes = [], []
    names = list(splits)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            shared, rows, others = np.intersect1d(digests[first], digests[second], return_indices=True)
            if len(shared):
                problems.append(
                    f"{num_images(len(shared))} in {first} and in {second}, such as "
                    f"{splits[second].describe(others[0])} = {splits[first].describe(rows[0])}"
                )
    train, order = splits["train"], np.argsort(digests["train"], kind="stable")
    first_rows, second_rows = order[:-1], order[1:]
    equal = digests["train"][first_rows] == digests["train"][second_rows]
    relabelled = train.labels[first_rows] != train.labels[second_rows]
    for row, other in zip(first_rows[equal & relabelled][:1], second_rows[equal & relabelled][:1], strict=True):
        problems.append(
            f"{num_images(int((equal & relabelled).sum()))} twice in train under two labels, such as "
            f"{train.describe(row)} ({train.class_names[train.labels[row]]}) = {train.describe(other)} "
            f"({train.class_names[train.labels[other]]})"
        )
    for row, other in zip(first_rows[equal & ~relabelled][:1], second_rows[equal & ~relabelled][:1], strict=True):
        count = int((equal & ~relabelled).sum())
        notes.append(f"{num_images(count)} twice in train, such as {train.describe(row)} = {train.describe(other)}")
    return Duplicates(problems, notes, "compared by their bytes, across splits and within train: every image")


def find_duplicates(images: Images, num_bytes: float, limit: float) -> Duplicates:
    """Compare every image, or only a sample if the images exceed `limit` bytes.

    A sampled image is compared with the training images of equal length, which Arrow knows without reading them. Where
    images are separate files, nothing is compared.
    """
    splits = named_splits(images)
    if num_bytes <= limit:
        return compare(splits, {name: image_digests(split) for name, split in splits.items()})
    train = splits.pop("train")
    stored, contents, _ = _stored(train)
    if contents.null_count:
        return Duplicates([], [], f"not compared: {readable_size(num_bytes)} of single files")
    lengths = pc.binary_length(contents).to_numpy()[stored]
    by_length = np.argsort(lengths, kind="stable")
    problems, num_compared, num_candidates = [], 0, 0
    for name, split in splits.items():
        matches = []
        for row in sample_rows(split).tolist():
            try:
                content = read_content(split.fetch([row])[0])
            except UnreadableImageError:
                continue  # reported with the image statistics
            start, stop = np.searchsorted(lengths, [len(content), len(content) + 1], sorter=by_length)
            if num_candidates + stop - start > MAX_CANDIDATES:
                continue
            num_compared, num_candidates = num_compared + 1, num_candidates + stop - start
            equal = (other for other in by_length[start:stop] if read_content(train.fetch([other])[0]) == content)
            matches += [(row, other) for other in [next(equal, None)] if other is not None]
        if matches:
            row, other = matches[0]
            problems.append(
                f"{len(matches)} of {min(SAMPLE_SIZE, len(split))} sampled images of {name} in train too, such as "
                f"{split.describe(row)} = {train.describe(other)}"
            )
    how = f"compared by their bytes: a sample of {num_compared} of the other splits with all of train"
    return Duplicates(problems, [], how)


def num_images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def readable_size(num_bytes: float) -> str:
    """1.23 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(int(np.log10(max(num_bytes, 1)) // 3), len(units) - 1)
    return f"{num_bytes / 1000**power:.3g} {units[power]}"
