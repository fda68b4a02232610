"""Hashes of a run's images, by which a resumed run notices that they changed.

They depend neither on the folder that holds the images nor on modification times.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.duplicates import read_content, stored_images
from cskd_hf.data.splits import Images, ImageSplit

# Bounds per split [ours], which keep a start on 1.28 million images within seconds: of more files, evenly spaced ones
# are looked at, and of more bytes, evenly spaced images are read.
MAX_IMAGES, MAX_BYTES = 1 << 17, 256 << 20
_THREADS = 8  # for the latency of network filesystems

_MEANING = {
    "images": "the number of images",
    "split": "the split",
    "classes": "class names or their order",
    "rows": "the rows that belong to it",
    "labels": "labels",
    "files": "file names or sizes",
    "content": "the bytes of images",
}


def describe_images(images: Images) -> dict[str, dict[str, Any]]:
    """Split ("train", "test", "holdout") → the number of its images, and a hash of each of its properties.

    Example:
        >>> from cskd_hf import load_images
        >>> from cskd_hf.recipe.sections import DataSection
        >>> columns = {"image_column": "image", "label_column": "label"}
        >>> images = load_images(DataSection(dataset="digits", train_split="train", test_split="test", **columns))
        >>> {name: split["images"] for name, split in describe_images(images).items()}
        {'train': 200, 'test': 1297}
    """
    return {name: describe_split(split) for name, split in images.splits.items()}


def image_differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One line for each split in which two results of `describe_images` differ."""
    lines = []
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name, {"images": 0}), new.get(name, {"images": 0})
        if before != after:
            changed = [meaning for key, meaning in _MEANING.items() if before.get(key) != after.get(key)]
            counts = f"{before['images']:,} in the folder, {after['images']:,} expected"
            lines.append(f"{name} images: {counts}; what differs: {', '.join(changed)}")
    return lines


def describe_split(split: ImageSplit) -> dict[str, Any]:
    """The number of images of a split, and a hash of each of its properties."""
    rows, contents, paths = stored_images(split)
    names = ["" if path is None else path for path in paths.take(pa.array(rows)).to_pylist()]
    if len({os.path.isabs(name) for name in names if name}) > 1:  # a table with both, and a relative data.dataset
        names = [name and os.path.abspath(name) for name in names]
    # Below the folder that all share: the same names wherever the data lies.
    known = [name for name in names if name] or [""]  # a row may have no image
    shared = os.path.commonpath([os.path.dirname(name) for name in (min(known), max(known))])
    below = "\n".join(name[len(shared) :] for name in names)
    sizes = pc.fill_null(pc.binary_length(contents), -1).to_numpy().astype("<i8")[rows]
    with ThreadPoolExecutor(_THREADS) as pool:

        def for_each(compute: Callable[[int], Any], numbers: np.ndarray) -> list[Any]:
            parts = pool.map(
                lambda part: [compute(number) for number in part.tolist()], np.array_split(numbers, _THREADS)
            )
            return [result for part in parts for result in part]

        files = _evenly(np.flatnonzero(sizes < 0), MAX_IMAGES)
        sizes[files] = for_each(lambda number: _size(names[number]), files)
        found = sizes[sizes >= 0]
        count = MAX_BYTES // max(1, int(found.mean())) if len(found) else MAX_IMAGES
        sample = _evenly(np.arange(len(split)), max(1, min(count, MAX_IMAGES)))
        content = for_each(lambda number: _sha256(contents[rows[number]].as_buffer(), names[number]), sample)
    return {
        "images": len(split),
        "split": split.name,
        "classes": _digest(json.dumps(split.class_names).encode()),
        "rows": _digest(split.rows.astype("<i8").tobytes()),
        "labels": _digest(split.labels.astype("<i8").tobytes()),
        "files": _digest(below.encode(), sizes.tobytes()),
        "content": _digest(*content),
    }


def _evenly(numbers: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of these numbers, evenly spaced."""
    return numbers if len(numbers) <= count else numbers[np.linspace(0, len(numbers) - 1, count).astype(np.int64)]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # decoding reports it
        return -1


def _sha256(content: pa.Buffer | None, path: str) -> bytes:
    try:
        return hashlib.sha256(read_content({"bytes": None, "path": path}) if content is None else content).digest()
    except UnreadableImageError:
        return b"unreadable"


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def fingerprint(split: ImageSplit) -> str:
    """16 hexadecimal digits that identify a split's name, class names, labels and rows."""
    arrays = (array.astype("<i8").tobytes() for array in (split.labels, split.rows))
    return _digest(json.dumps([split.name, list(split.class_names)]).encode(), *arrays)
