"""A catalog name, Hub id or folder → the splits a run needs, as rows of encoded images with labels 0 … K − 1.

No image is decoded here: labels are read from Arrow, images stay the bytes they were stored as.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, Value

from cskd_hf.data.sources import open_splits, same_split
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import note_of_copy
from cskd_hf.recipe.sections import DataSection


@dataclass(frozen=True)
class ImageSplit:
    """Rows of one split.

    Attributes:
        name: the split's name in the data.
        dataset: one column, `image`, of `{"bytes", "path"}`.
        labels: (N,) int64, 0 … K − 1.
        class_names: K names.
        rows: (N,) where each row stands in the split as stored; a held-out share is not contiguous.
    """

    name: str
    dataset: Dataset
    labels: np.ndarray
    class_names: tuple[str, ...]
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The encoded images of these rows, in one read."""
        # A row may hold no image at all: what decodes it says so.
        return [image or {"bytes": None, "path": None} for image in self.dataset[list(indices)]["image"]]

    def describe(self, index: int, image: Mapping[str, Any] | None = None) -> str:
        """Where a row comes from, for people: split, row as stored, file."""
        path = (self.fetch([index])[0] if image is None else image)["path"]
        return f"split {self.name!r}, row {self.rows[index]}" + (f", file {path}" if path else "")

    def take(self, indices: np.ndarray) -> ImageSplit:
        """Some of the rows; they remember where they came from."""
        rows, labels = self.rows[indices], self.labels[indices]
        return ImageSplit(self.name, self.dataset.select(indices), labels, self.class_names, rows)


@dataclass(frozen=True)
class Images:
    """What a run trains on, fits its temperature on, and is tested on."""

    train: ImageSplit
    holdout: ImageSplit | None
    test: ImageSplit
    notes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)


def load_images(data: DataSection) -> Images:
    """Load the splits of a resolved recipe.

    Raises:
        UserError: no such data, split or column; labels missing or of another kind; fewer than two classes.
    """
    assert data.train_split is not None
    assert data.test_split is not None
    wanted = [data.train_split, data.test_split]
    if isinstance(data.holdout, str):
        wanted.append(data.holdout)
    if len(set(map(same_split, wanted))) < len(wanted):
        raise UserError(
            f"data: the splits {', '.join(wanted)} name one of them twice: a result on it would mean nothing"
        )

    tables = open_splits(data, wanted)
    labels, class_names = _labels(tables, data)
    if len(class_names) < 2:
        raise UserError(f"data.label_column: {data.label_column!r} has fewer than two classes: {_some(class_names)}")
    splits = {
        name: ImageSplit(name, _images_only(table, name, data), labels[name], class_names, np.arange(len(table)))
        for name, table in tables.items()
    }
    train, test, holdout = splits[wanted[0]], splits[wanted[1]], None
    if isinstance(data.holdout, str):
        holdout = splits[data.holdout]
    elif data.holdout:
        held = held_out(train.labels, data.holdout)
        if not held.any():
            raise UserError(f"data.holdout: {data.holdout} of {len(train)} images holds none out; write more, or 0")
        train, holdout = train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))

    notes = [note for note in [note_of_copy(data.dataset)] if note is not None]
    present = np.bincount(train.labels, minlength=len(class_names))
    if (present == 0).any():
        empty = [class_names[label] for label in np.flatnonzero(present == 0)]
        notes.append(f"{len(empty)} of {len(class_names)} classes have no training image: {_some(empty)}")
    if (present == 1).any():
        alone = [class_names[label] for label in np.flatnonzero(present == 1)]
        notes.append(f"{len(alone)} classes have one training image, paired with itself: {_some(alone)}")
    return Images(train, holdout, test, tuple(notes))


def load_split(data: DataSection, class_names: Sequence[str] | None) -> ImageSplit:
    """`data.test_split` alone, whatever its part in training was, with labels as `class_names` orders them.

    Raises:
        UserError: as `load_images`; or the split has a class that is not among `class_names`.
    """
    assert data.test_split is not None
    name = data.test_split
    table = open_splits(data, [name])[name]
    labels, own_names = _labels({name: table}, data)
    known = own_names if class_names is None else tuple(class_names)
    number_of = {known_name: number for number, known_name in enumerate(known)}
    translation = np.array([number_of.get(own_name, -1) for own_name in own_names])
    numbers = translation[labels[name]]
    if (numbers < 0).any():
        strange = [own_names[label] for label in np.unique(labels[name][numbers < 0])]
        raise UserError(f"data: split {name!r} has classes that the weights do not know: {_some(strange)}")
    return ImageSplit(name, _images_only(table, name, data), numbers, known, np.arange(len(table)))


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: a stratified share, the same for every seed; a class always keeps one image in training."""
    # RandomState's stream is frozen by NumPy: the share is the same in every version.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, start, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(start, count)
    quota = np.minimum(np.rint(count * share), count - 1)
    held = np.zeros(len(labels), dtype=bool)
    held[by_class] = rank < np.repeat(quota, count)
    return held


def _images_only(table: Dataset, split: str, data: DataSection) -> Dataset:
    assert data.image_column is not None
    _require_column(table, split, data.image_column, "image_column")
    feature = table.features[data.image_column]
    stored = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    if not isinstance(feature, Image) and not stored:
        raise UserError(f"data.image_column: {data.image_column!r} of split {split!r} holds {feature}, not images")
    images = table.select_columns([data.image_column])
    if stored and feature.dtype.startswith("large_"):  # older versions of datasets know no way from there to an image
        images = images.cast_column(data.image_column, Value(feature.dtype.removeprefix("large_")))
    images = images.cast_column(data.image_column, Image(decode=False))
    return images if data.image_column == "image" else images.rename_column(data.image_column, "image")


def _require_column(table: Dataset, split: str, column: str, key: str) -> None:
    if column not in table.column_names:
        raise UserError(f"data.{key}: split {split!r} has no column {column!r}; it has {', '.join(table.column_names)}")


def _labels(tables: Mapping[str, Dataset], data: DataSection) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Every split's labels against one list of classes: (split → (N,) int64, names)."""
    column = data.label_column
    assert column is not None
    raw: dict[str, tuple[np.ndarray, list[Any]]] = {}  # split → its own numbers, its own names
    for split, table in tables.items():
        _require_column(table, split, column, "label_column")
        feature = table.features[column]
        if not isinstance(feature, (ClassLabel, Value)) or str(feature.dtype).startswith("float"):
            raise UserError(
                f"data.label_column: {column!r} of split {split!r} holds {feature}; one class an image is needed"
            )
        if len(table) == 0:
            raise UserError(f"data: split {split!r} is empty")
        # Arrow format decodes no image, and [:] applies a select or shuffle that the raw table does not know of.
        values = table.select_columns([column]).with_format("arrow")[:][column]
        unlabelled = values.null_count
        if pa.types.is_signed_integer(values.type):
            unlabelled += pc.sum(pc.less(values, 0), min_count=0).as_py()
        if unlabelled:
            raise UserError(
                f"data: {unlabelled} of {len(values)} rows of split {split!r} have no label; choose another split"
            )
        if isinstance(feature, ClassLabel):
            raw[split] = values.to_numpy(), list(feature.names)
            highest = int(raw[split][0].max())
            if highest >= len(feature.names):
                raise UserError(
                    f"data.label_column: {column!r} of split {split!r} holds the label {highest}, but its list has "
                    f"only {len(feature.names)} classes, 0 to {len(feature.names) - 1}"
                )
        else:  # in Arrow: NumPy would make an object of every name
            distinct = values.unique()
            raw[split] = pc.index_in(values, value_set=distinct).to_numpy(), distinct.to_pylist()

    features = [table.features[column] for table in tables.values()]
    types_of_names = {type(name) for _, own_names in raw.values() for name in own_names}
    if len({type(feature) for feature in features}) > 1 or len(types_of_names) > 1:
        raise UserError(f"data.label_column: {column!r} has another type in each split: {_some(features)}")
    if isinstance(features[0], ClassLabel):
        names = next(iter(raw.values()))[1]  # the data's own order, empty classes included
    else:
        names = sorted({name for _, own_names in raw.values() for name in own_names})
    number_of = {name: number for number, name in enumerate(names)}
    labels: dict[str, np.ndarray] = {}
    for split, (numbers, own_names) in raw.items():
        # Two splits may number the same names differently.
        translation = np.array([number_of.get(name, -1) for name in own_names], dtype=np.int64)
        labels[split] = translation[numbers]
        if (labels[split] < 0).any():
            strange = [own_names[number] for number in np.unique(numbers[labels[split] < 0])]
            raise UserError(f"data: split {split!r} has classes that split {next(iter(raw))!r} lacks: {_some(strange)}")
    return labels, tuple(map(str, names))


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")


def fingerprint(split: ImageSplit) -> str:
    """16 hexadecimal digits over a split's size, labels and class names, and the rows it holds."""
    digest = hashlib.sha256(json.dumps([split.name, list(split.class_names)]).encode())
    for array in (split.labels, split.rows):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
