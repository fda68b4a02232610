"""Duplicate images, by their bytes: all of them in small data, a sample against all of train in large data."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.formats import is_file_or_missing
from cskd_hf.data.splits import Images, ImageSplit
from cskd_hf.errors import UserError

SAMPLE_SIZE = 200  # images per split, where reading all of them takes too long
MAX_CANDIDATES = 5_000  # training images read to compare a sample with


@dataclass
class Diagnostics:
    """Findings of the data checks, one line each.

    Attributes:
        fatal: training would be meaningless or would stop midway.
        problems: probably wrong; the user decides.
        notes: worth knowing.
    """

    fatal: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def raise_fatal(self) -> None:
        """Raises UserError with the fatal findings, if there are any."""
        if self.fatal:
            raise UserError("\n".join(self.fatal))


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
    if not is_file_or_missing(image["path"]):
        raise UnreadableImageError(f"unreadable image ({image['path']} is not a regular file)")
    try:
        return Path(image["path"]).read_bytes()
    except OSError as error:
        raise UnreadableImageError(f"unreadable image ({error})") from None


def digest(content: Any) -> int:
    """64 bits of BLAKE2b."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def image_digests(split: ImageSplit) -> np.ndarray:
    """(N,) uint64 digests of the images' bytes; of its path for a file that cannot be read."""
    rows, contents, paths = stored_images(split)
    digests = np.empty(len(rows), np.uint64)
    for number, row in enumerate(rows.tolist()):
        content = contents[row].as_buffer()  # hashed in place, without a Python copy
        if content is None:
            path = paths[row].as_py()
            try:
                content = read_content({"bytes": None, "path": path})
            except UnreadableImageError:
                content = str(path).encode()
        digests[number] = digest(content)
    return digests


def stored_images(split: ImageSplit) -> tuple[np.ndarray, pa.ChunkedArray, pa.ChunkedArray]:
    """Each row's position in the Arrow table, and the table's bytes and paths; a selection would copy all bytes."""
    indices = split.dataset._indices
    rows = np.arange(len(split)) if indices is None else indices.column(0).to_numpy().astype(np.int64)
    images = split.dataset.data.column("image")
    return rows, pc.struct_field(images, "bytes"), pc.struct_field(images, "path")


def compare(
    splits: Mapping[str, ImageSplit], digests: Mapping[str, Sequence[int] | np.ndarray], diagnostics: Diagnostics
) -> str:
    """Compare every image with every other, across splits and within train.

    Args:
        digests: split → 64-bit digests of its images.

    Returns:
        What was compared.
    """
    keys = {name: np.asarray(values, np.uint64) for name, values in digests.items()}
    names = list(splits)
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            shared, rows, others = np.intersect1d(keys[first], keys[second], return_indices=True)
            if len(shared):
                count = int(np.isin(keys[second], shared).sum())
                diagnostics.problems.append(
                    f"{num_images(count)} in {first} and in {second}, such as "
                    f"{splits[second].describe(others[0])} = {splits[first].describe(rows[0])}"
                )
    train, order = splits["train"], np.argsort(keys["train"], kind="stable")
    pairs = np.stack([order[:-1], order[1:]], axis=1)[np.diff(keys["train"][order]) == 0]  # rows with equal bytes
    relabelled = train.labels[pairs[:, 0]] != train.labels[pairs[:, 1]]
    if relabelled.any():
        row, other = pairs[relabelled][0]
        diagnostics.problems.append(
            f"{num_images(relabelled.sum())} twice in train under two labels, such as {train.describe(row)} "
            f"({train.class_names[train.labels[row]]}) = {train.describe(other)} "
            f"({train.class_names[train.labels[other]]})"
        )
    if not relabelled.all():
        row, other = pairs[~relabelled][0]
        diagnostics.notes.append(
            f"{num_images((~relabelled).sum())} twice in train, such as {train.describe(row)} = {train.describe(other)}"
        )
    return "compared by their bytes, across splits and within train: every image"


def find_duplicates(images: Images, num_bytes: float, limit: float, diagnostics: Diagnostics) -> str:
    """Compare every image, or only a sample if the images exceed `limit` bytes.

    A sampled image is compared with the training images of equal length, which Arrow knows without reading them. Where
    images are separate files, nothing is compared.

    Returns:
        What was compared.
    """
    splits = named_splits(images)
    if num_bytes <= limit:
        return compare(splits, {name: image_digests(split) for name, split in splits.items()}, diagnostics)
    train = splits.pop("train")
    stored, contents, _ = stored_images(train)
    if contents.null_count:
        return f"not compared: {readable_size(num_bytes)} of single files"
    lengths = pc.binary_length(contents).to_numpy()[stored]
    by_length = np.argsort(lengths, kind="stable")
    num_compared, num_candidates = 0, 0
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
            match = next(equal, None)
            if match is not None:
                matches.append((row, match))
        if matches:
            row, other = matches[0]
            diagnostics.problems.append(
                f"{len(matches)} of {min(SAMPLE_SIZE, len(split))} sampled images of {name} in train too, such as "
                f"{split.describe(row)} = {train.describe(other)}"
            )
    return f"compared by their bytes: a sample of {num_compared} of the other splits with all of train"


def num_images(count: int) -> str:
    return f"{count:,} image" if count == 1 else f"{count:,} images"


def readable_size(num_bytes: float) -> str:
    """1.23 GB."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    power = min(int(np.log10(max(num_bytes, 1)) // 3), len(units) - 1)
    return f"{num_bytes / 1000**power:.3g} {units[power]}"
