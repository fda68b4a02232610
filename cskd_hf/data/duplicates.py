"""Images that occur twice, by their bytes: all of them, or a sample of the other splits with all of train."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.splits import Images, ImageSplit

SAMPLE = 200  # images a split that are looked at where looking at all takes too long
ALL = "compared by their bytes, across splits and within train: every image"
CANDIDATES = 5_000  # training images fetched to compare a sample with


def named_splits(images: Images) -> dict[str, ImageSplit]:
    """By their part in the run, which is what people call them."""
    held = {} if images.holdout is None else {"held out": images.holdout}
    return {"train": images.train, **held, "test": images.test}


def sample(split: ImageSplit, count: int = SAMPLE) -> np.ndarray:
    """The same rows at every call, from all over the split."""
    return np.random.RandomState(0).permutation(len(split))[:count]


def content_of(image: Mapping[str, Any]) -> bytes:
    if image["bytes"] is not None:
        return image["bytes"]
    if image["path"] is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"unreadable image ({error})") from None


def digest(content: Any) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def numbers(digests: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(digests), dtype="<u8")


def fingerprint(split: ImageSplit) -> np.ndarray:
    """(N,) uint64: 64 bits of BLAKE2b of every image's bytes; a file that cannot be read counts as its name."""
    positions, stored = _stored(split)
    order = np.argsort(positions, kind="stable")
    in_order, start, digests = positions[order], 0, list[bytes]()
    for chunk in stored.chunks:
        low, high = np.searchsorted(in_order, [start, start + len(chunk)])
        digests += _digests(chunk, (in_order[low:high] - start).tolist())
        start += len(chunk)
    prints = np.empty(len(split), dtype="<u8")
    prints[order] = numbers(digests)
    return prints


def _stored(split: ImageSplit) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Where each row stands in the table, and the table's images: a selection of rows would be gathered, all bytes."""
    indices = split.dataset._indices
    positions = np.arange(len(split)) if indices is None else indices.column(0).to_numpy().astype(np.int64)
    return positions, split.dataset.data.column("image")


def _digests(images: pa.StructArray, rows: list[int]) -> Iterator[bytes]:
    """The bytes are hashed where they lie, without a Python copy of each."""
    contents, paths = images.field("bytes"), images.field("path")
    if contents.null_count:
        for row in rows:
            image = {"bytes": contents[row].as_py(), "path": paths[row].as_py()}
            try:
                yield digest(content_of(image))
            except UnreadableImageError:
                yield digest(str(image["path"]).encode())
        return
    large = pa.types.is_large_binary(contents.type)
    _, places, data = contents.buffers()
    offsets = np.frombuffer(places, dtype=np.int64 if large else np.int32)[contents.offset :].tolist()
    content = memoryview(data)
    for row in rows:
        yield digest(content[offsets[row] : offsets[row + 1]])


@dataclass(frozen=True)
class Duplicates:
    """Images with the same bytes; examples name the rows."""

    problems: list[str]
    notes: list[str]
    how: str


def compare(splits: Mapping[str, ImageSplit], prints: Mapping[str, np.ndarray], how: str) -> Duplicates:
    """Every image with every other: across splits, and within the training images."""
    problems, notes = [], []
    names = list(splits)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            shared, rows, others = np.intersect1d(prints[first], prints[second], return_indices=True)
            if len(shared):
                problems.append(
                    f"{images_as_told(len(shared))} in {first} and in {second}, such as "
                    f"{splits[second].describe(others[0])} = {splits[first].describe(rows[0])}"
                )
    train, order = splits["train"], np.argsort(prints["train"], kind="stable")
    same = np.flatnonzero(np.diff(prints["train"][order]) == 0)  # row order[i] = row order[i + 1]
    other_label = same[train.labels[order[same]] != train.labels[order[same + 1]]]
    if len(other_label):
        row, other = order[other_label[0]], order[other_label[0] + 1]
        problems.append(
            f"{images_as_told(len(other_label))} twice in train under two labels, such as {train.describe(row)} "
            f"({train.class_names[train.labels[row]]}) = {train.describe(other)} "
            f"({train.class_names[train.labels[other]]})"
        )
    if len(same) > len(other_label):
        row, other = order[np.setdiff1d(same, other_label)[0] + np.arange(2)]
        count = len(same) - len(other_label)
        notes.append(f"{images_as_told(count)} twice in train, such as {train.describe(row)} = {train.describe(other)}")
    return Duplicates(problems, notes, how)


def find_duplicates(images: Images, num_bytes: float, limit: float) -> Duplicates:
    """Compare all bytes if there are few; else a sample of the other splits with all of train.

    An image of the sample is compared with every training image of as many bytes, which Arrow knows without reading
    them; where images are files on their own, nothing is compared.
    """
    splits = named_splits(images)
    if num_bytes <= limit:
        return compare(splits, {name: fingerprint(split) for name, split in splits.items()}, ALL)
    lengths = _lengths(images.train)
    if lengths is None:
        return Duplicates([], [], f"not compared: {readable_size(num_bytes)} of single files")
    problems, compared, fetched = [], 0, 0
    by_length = np.argsort(lengths, kind="stable")
    for name in list(splits)[1:]:
        split, found = splits[name], []
        for row in sample(split).tolist():
            try:
                content = content_of(split.fetch([row])[0])
            except UnreadableImageError:
                continue  # told by whoever looks at the images
            start, stop = np.searchsorted(lengths, [len(content), len(content) + 1], sorter=by_length)
            if fetched + stop - start > CANDIDATES:
                continue
            compared, fetched = compared + 1, fetched + stop - start
            same = [other for other in by_length[start:stop] if content_of(images.train.fetch([other])[0]) == content]
            found += [(row, other) for other in same[:1]]
        if found:
            row, other = found[0]
            problems.append(
                f"{len(found)} of {min(SAMPLE, len(split))} sampled images of {name} in train too, such as "
                f"{split.describe(row)} = {images.train.describe(other)}"
            )
    return Duplicates(
        problems, [], f"compared by their bytes: a sample of {compared} of the other splits with all of train"
    )


def _lengths(split: ImageSplit) -> np.ndarray | None:
    """(N,) bytes of each image as Arrow's offsets tell; None where the images are not in the table."""
    positions, stored = _stored(split)
    contents = [chunk.field("bytes") for chunk in stored.chunks]
    if any(content.null_count for content in contents):
        return None
    return np.concatenate([pc.binary_length(content).to_numpy() for content in contents])[positions]


def images_as_told(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"


def readable_size(num_bytes: float) -> str:
    """As a person says it: 1.23 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(int(np.log10(max(num_bytes, 1)) // 3), len(units) - 1)
    return f"{num_bytes / 1000**power:.3g} {units[power]}"
