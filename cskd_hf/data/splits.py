"""A catalog name, Hub id or folder → the splits of a run: rows of encoded images with labels 0 … K − 1.

No image is decoded: labels are read from Arrow, and images stay encoded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Image, Value

from cskd_hf.data.hub import same_split
from cskd_hf.data.sampling import rank_in_class
from cskd_hf.data.sources import open_splits
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
        rows: (N,) each row's number in the split as stored; those of a hold-out share are not contiguous.
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
        # Decoding reports a null image.
        return [image or {"bytes": None, "path": None} for image in self.dataset[list(indices)]["image"]]

    def describe(self, index: int, image: Mapping[str, Any] | None = None) -> str:
        """Split, row as stored and file of an image, for messages."""
        path = (self.fetch([index])[0] if image is None else image)["path"]
        return f"split {self.name!r}, row {self.rows[index]}" + (f", file {path}" if path else "")

    def take(self, indices: np.ndarray) -> ImageSplit:
        """A subset that keeps the row numbers."""
        rows, labels = self.rows[indices], self.labels[indices]
        return ImageSplit(self.name, self.dataset.select(indices), labels, self.class_names, rows)


@dataclass(frozen=True)
class Images:
    """The splits of a run and remarks for its report."""

    train: ImageSplit
    holdout: ImageSplit | None
    test: ImageSplit
    notes: tuple[str, ...]
    deep: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # see `inspect.QuickCheck`

    @property
    def num_classes(self) -> int:
        return len(self.train.class_names)


def load_images(data: DataSection) -> Images:
    """Load the splits of a resolved recipe.

    Raises:
        UserError: no such data, split or column; labels missing or of another type; fewer than two classes.

    Example:
        >>> from cskd_hf import load_images
        >>> from cskd_hf.recipe.sections import DataSection
        >>> columns = {"image_column": "image", "label_column": "label"}
        >>> data = DataSection(dataset="digits", train_split="train", test_split="test", holdout=0.25, **columns)
        >>> images = load_images(data)
        >>> len(images.train), len(images.holdout), len(images.test), images.num_classes
        (150, 50, 1297, 10)
        >>> sorted(images.train.fetch([0])[0])
        ['bytes', 'path']
    """
    assert data.train_split is not None
    assert data.test_split is not None
    names = [data.train_split, data.test_split]
    if isinstance(data.holdout, str):
        names.append(data.holdout)
    if len(set(map(same_split, names))) < len(names):
        raise UserError(f"data: {', '.join(names)} names a split twice; train, test and hold-out split must differ")

    tables = open_splits(data, names)
    labels, class_names = _labels(tables, data)
    if len(class_names) < 2:
        raise UserError(f"data.label_column: {data.label_column!r} has fewer than two classes: {_some(class_names)}")
    splits = {
        name: ImageSplit(name, _images_only(table, name, data), labels[name], class_names, np.arange(len(table)))
        for name, table in tables.items()
    }
    train, test, holdout = splits[names[0]], splits[names[1]], None
    if isinstance(data.holdout, str):
        holdout = splits[data.holdout]
    elif data.holdout:
        mask = holdout_mask(train.labels, data.holdout)
        if not mask.any():
            raise UserError(f"data.holdout: {data.holdout} of {len(train)} images is no image; write more, or 0")
        train, holdout = train.take(np.flatnonzero(~mask)), train.take(np.flatnonzero(mask))

    notes = [note for note in [note_of_copy(data.dataset)] if note is not None]
    present = np.bincount(train.labels, minlength=len(class_names))
    for count, problem in ((0, "have no training image"), (1, "have one training image, paired with itself")):
        if (present == count).any():
            classes = [class_names[label] for label in np.flatnonzero(present == count)]
            notes.append(f"{len(classes)} of {len(class_names)} classes {problem}: {_some(classes)}")
    return Images(train, holdout, test, tuple(notes))


def load_split(data: DataSection, class_names: Sequence[str] | None) -> ImageSplit:
    """`data.test_split` alone, even if it was trained on, with labels in the order of `class_names`.

    Raises:
        UserError: as `load_images`, or the split has a class that is not in `class_names`.
    """
    assert data.test_split is not None
    name = data.test_split
    table = open_splits(data, [name])[name]
    labels, own_names = _labels({name: table}, data)
    names = own_names if class_names is None else tuple(class_names)
    numbers, unknown = _renumber(labels[name], own_names, names)
    if unknown:
        raise UserError(
            f"data: split {name!r} has classes that the weights were not trained on: {_some(unknown)}; choose a split"
        )
    return ImageSplit(name, _images_only(table, name, data), numbers, names, np.arange(len(table)))


def holdout_mask(labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: a stratified share, the same for every seed; every class keeps one training image."""
    # RandomState's stream is frozen by NumPy: the share is the same in every version.
    rank = rank_in_class(labels, np.random.RandomState(0).permutation(len(labels)))
    count = np.bincount(labels)[labels]
    return rank < np.minimum(np.rint(count * share), count - 1)


def _images_only(table: Dataset, split: str, data: DataSection) -> Dataset:
    assert data.image_column is not None
    _require_column(table, split, data.image_column, "image_column")
    feature = table.features[data.image_column]
    stored = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    if not isinstance(feature, Image) and not stored:
        raise UserError(
            f"data.image_column: {data.image_column!r} of split {split!r} holds {feature}; name a column of images"
        )
    images = table.select_columns([data.image_column])
    if stored and feature.dtype.startswith("large_"):  # older versions of datasets cannot cast these to images
        images = images.cast_column(data.image_column, Value(feature.dtype.removeprefix("large_")))
    images = images.cast_column(data.image_column, Image(decode=False))
    return images if data.image_column == "image" else images.rename_column(data.image_column, "image")


def _require_column(table: Dataset, split: str, column: str, key: str) -> None:
    if column not in table.column_names:
        raise UserError(f"data.{key}: split {split!r} has no column {column!r}; it has {', '.join(table.column_names)}")


def _labels(tables: Mapping[str, Dataset], data: DataSection) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels of all splits against one list of classes: (split → (N,) int64, names)."""
    column = data.label_column
    assert column is not None
    stored = {split: _stored_labels(table, split, column) for split, table in tables.items()}
    features = [table.features[column] for table in tables.values()]
    name_types = {type(name) for _, own_names in stored.values() for name in own_names}
    if len({type(feature) for feature in features}) > 1 or len(name_types) > 1:
        raise UserError(
            f"data.label_column: {column!r} has different types in the splits: {_some(features)}; convert one of them"
        )
    first = next(iter(stored))
    if isinstance(features[0], ClassLabel):
        names = stored[first][1]  # the data's own order, empty classes included
    else:
        names = sorted({name for _, own_names in stored.values() for name in own_names})
    labels: dict[str, np.ndarray] = {}
    for split, (numbers, own_names) in stored.items():
        labels[split], unknown = _renumber(numbers, own_names, names)
        if unknown:
            raise UserError(
                f"data: split {split!r} has classes that split {first!r} lacks: {_some(unknown)}; remove their images"
            )
    return labels, tuple(map(str, names))


def _stored_labels(table: Dataset, split: str, column: str) -> tuple[np.ndarray, list[Any]]:
    """One split's labels as stored: (N,) numbers and the names that they index."""
    _require_column(table, split, column, "label_column")
    feature = table.features[column]
    if not isinstance(feature, (ClassLabel, Value)) or str(feature.dtype).startswith("float"):
        raise UserError(
            f"data.label_column: {column!r} of split {split!r} holds {feature}; name a column of class labels"
        )
    if len(table) == 0:
        raise UserError(f"data: split {split!r} is empty; choose another split")
    # Arrow format decodes no image, and [:] applies a select or shuffle that the raw table knows nothing about.
    values = table.select_columns([column]).with_format("arrow")[:][column]
    num_unlabelled = values.null_count
    if pa.types.is_signed_integer(values.type):
        num_unlabelled += pc.sum(pc.less(values, 0), min_count=0).as_py()
    if num_unlabelled:
        raise UserError(
            f"data: {num_unlabelled} of {len(values)} rows of split {split!r} have no label; choose another split"
        )
    if isinstance(feature, ClassLabel):
        numbers, highest = values.to_numpy(), pc.max(values).as_py()
        if highest >= len(feature.names):
            raise UserError(
                f"data.label_column: {column!r} of split {split!r} holds the label {highest}, but its list has "
                f"only {len(feature.names)} classes, 0 to {len(feature.names) - 1}; correct the labels"
            )
        return numbers, list(feature.names)
    distinct = values.unique()  # in Arrow: NumPy would make a Python object of every name
    return pc.index_in(values, value_set=distinct).to_numpy(), distinct.to_pylist()


def _renumber(numbers: np.ndarray, own_names: Sequence[Any], names: Sequence[Any]) -> tuple[np.ndarray, list[Any]]:
    """Translate label numbers from one list of names to another: (N,) int64 and the names missing there."""
    number_of = {name: number for number, name in enumerate(names)}
    labels = np.array([number_of.get(name, -1) for name in own_names], dtype=np.int64)[numbers]
    return labels, [own_names[number] for number in np.unique(numbers[labels < 0])]


def _some(names: Sequence[Any]) -> str:
    return ", ".join(map(str, names[:5])) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")


def fingerprint(split: ImageSplit) -> str:
    """16 hexadecimal digits that identify a split's name, class names, labels and rows."""
    digest = hashlib.sha256(json.dumps([split.name, list(split.class_names)]).encode())
    for array in (split.labels, split.rows):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
