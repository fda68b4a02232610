"""A catalog name, Hub id or folder → the splits of a run: rows of encoded images with labels 0 … K − 1.

No image is decoded: labels are read from Arrow, and images stay encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from cskd_hf.data.choose import written_names
from cskd_hf.data.columns import images_only, require_columns
from cskd_hf.data.draws import rank_in_class
from cskd_hf.data.formats import is_file_or_missing
from cskd_hf.data.labels import (
    BY_NUMBER,
    StoredLabels,
    by_index,
    join_labels,
    look_alikes,
    renumber,
    some,
    stored_labels,
)
from cskd_hf.data.sources import OpenedSplits, open_splits
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import note_of_copy, same_split
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
        notes: remarks about the split as stored, such as the files left out.
    """

    name: str
    dataset: Dataset
    labels: np.ndarray
    class_names: tuple[str, ...]
    rows: np.ndarray
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def fetch(self, indices: Sequence[int]) -> list[Mapping[str, Any]]:
        """The encoded images of these rows, in one read; decoding reports a null image."""
        return [_openable(image or {"bytes": None, "path": None}) for image in self.dataset[list(indices)]["image"]]

    def describe(self, index: int, image: Mapping[str, Any] | None = None) -> str:
        """Split, row as stored and file of an image, for messages."""
        path = (self.fetch([index])[0] if image is None else image)["path"]
        return f"split {self.name!r}, row {self.rows[index]}" + (f", file {path}" if path else "")

    def take(self, indices: np.ndarray) -> ImageSplit:
        """A subset that keeps the row numbers."""
        images = self.dataset.select(indices)
        return ImageSplit(self.name, images, self.labels[indices], self.class_names, self.rows[indices])


def _openable(image: Mapping[str, Any]) -> Mapping[str, Any]:
    """The image, without bytes if its path names a pipe or a device, which would block forever."""
    if image["bytes"] is None and image["path"] and not is_file_or_missing(image["path"]):
        return {"bytes": b"", "path": image["path"]}
    return image


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

    @property
    def splits(self) -> dict[str, ImageSplit]:
        """By name in files: "train", "test" and, if there is one, "holdout"."""
        return {"train": self.train, "test": self.test} | ({} if self.holdout is None else {"holdout": self.holdout})


def load_images(data: DataSection) -> Images:
    """Load the splits of a resolved recipe.

    Raises:
        UserError: no such data, split or column; labels missing or of another type; fewer than two classes to train on,
            or none of them in another split.

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
    if data.dataset == "FOLDER" and not Path(data.dataset).exists():
        raise UserError("data.dataset: the recipe is for your images; write data.dataset= and their folder or Hub id")
    named = written_names(data).values()
    if len(set(map(same_split, named))) < len(named):
        raise UserError(f"data: {', '.join(named)} names a split twice; train, test and hold-out split must differ")
    opened = open_splits(data)
    stored = _read_labels(data, opened)
    labels, class_names = join_labels(list(stored.values()), data.label_column or "")
    numbered = zip(stored, labels, strict=True)
    splits = {role: _image_split(opened, role, own, class_names, data) for role, own in numbered}
    notes = list(dict.fromkeys(note for split in splits.values() for note in split.notes))  # one file may list several
    train, holdout, test = splits["train"], splits.get("holdout"), splits.get("test")
    if test is None:
        train, test = _take_share(train, data.test_split, "test_split")
    if isinstance(data.holdout, float) and data.holdout:
        train, holdout = _take_share(train, data.holdout, "holdout")
    _check_classes(train, [test] if holdout is None else [holdout, test], data)
    if copied := note_of_copy(data.dataset):
        notes.append(copied)
    notes += look_alikes(class_names) + _class_notes(train, holdout)
    return Images(train, holdout, test, tuple(notes))


def _check_classes(train: ImageSplit, others: Sequence[ImageSplit], data: DataSection) -> None:
    """Raises UserError without two classes to train on, or if another split has none of them."""
    trained = np.unique(train.labels)
    names = some([train.class_names[label] for label in trained])
    if len(trained) < 2:
        raise UserError(f"data.dataset: only one class to train on, {names}; add another, or change data.label_column")
    for split in others:
        if not np.isin(split.labels, trained).any():
            own = some([train.class_names[label] for label in np.unique(split.labels)])
            raise UserError(
                f"data: split {split.name!r} has none of the classes that are trained, {names}, only {own}; correct "
                "its labels, or choose another split"
            )


def _take_share(split: ImageSplit, share: float | str | None, key: str) -> tuple[ImageSplit, ImageSplit]:
    """What remains, and a stratified share."""
    assert isinstance(share, float)
    mask = holdout_mask(split.labels, share)
    if not mask.any():
        raise UserError(f"data.{key}: {share:g} of {len(split)} images is no image; write more")
    return split.take(np.flatnonzero(~mask)), split.take(np.flatnonzero(mask))


def _class_notes(train: ImageSplit, holdout: ImageSplit | None) -> list[str]:
    """Classes without images to train on or to fit the temperature on."""
    problems = [
        (train, 0, "have no training image"),
        (train, 1, "have one training image, paired with itself"),
        (holdout, 0, "have no hold-out image"),
    ]
    notes, names = [], train.class_names
    for split, count, problem in problems:
        if split is not None:
            classes = np.flatnonzero(np.bincount(split.labels, minlength=len(names)) == count)
            if len(classes):
                notes.append(f"{len(classes)} of {len(names)} classes {problem}: {some([names[n] for n in classes])}")
    return notes


def load_split(data: DataSection, class_names: Sequence[str] | None) -> ImageSplit:
    """The test images alone, even if they were trained on, with labels in the order of `class_names`.

    Raises:
        UserError: as `load_images`, or the split has a class that is not in `class_names`.
    """
    opened = open_splits(data, train=False)
    ((role, stored),) = _read_labels(data, opened, class_names).items()
    name, names = opened.names[role], tuple(class_names or join_labels([stored], data.label_column or "")[1])
    if class_names is None and stored.kind == "integers" and list(names) != [*map(str, range(len(names)))]:
        raise UserError(
            f"data: the weights name no classes, and the labels of split {name!r}, {some(names)}, have gaps; "
            f"{BY_NUMBER}"
        )
    labels, unknown = renumber(stored, names)
    if unknown:
        raise UserError(
            f"data: split {name!r} has classes that the weights were not trained on: {some(unknown)}; choose a split"
            + (f", or {BY_NUMBER}" if all(map(str.isdecimal, unknown)) else "")
        )
    split = _image_split(opened, role, labels, names, data)
    if role == "test":
        return split
    return replace(_take_share(split, data.test_split, "test_split")[1], notes=split.notes)


def _read_labels(
    data: DataSection, opened: OpenedSplits, class_names: Sequence[str] | None = None
) -> dict[str, StoredLabels]:
    if data.label_column is None:
        raise UserError("data.label_column: read null; fill null keys first: load_images(resolve(recipe).data)")
    stored = {}
    for role, table in opened.tables.items():
        where = f"split {opened.names[role]!r}"
        require_columns(table, where, data)
        stored[role] = stored_labels(table, data.label_column, where)
    if data.labels == "index":
        stored = dict(zip(stored, by_index(list(stored.values()), class_names), strict=True))
    return stored


def _image_split(
    opened: OpenedSplits, role: str, labels: np.ndarray, class_names: tuple[str, ...], data: DataSection
) -> ImageSplit:
    name = opened.names[role]
    images = images_only(opened.tables[role], f"split {name!r}", data)
    return ImageSplit(name, images, labels, class_names, np.arange(len(labels)), opened.notes.get(role, ()))


def holdout_mask(labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: a stratified share, the same for every seed; every class keeps one training image.

    N · share images are divided among the classes in proportion to their sizes, by largest remainders: of 100 classes
    with 5 images each, a tenth takes one image of 50 classes. Chance decides between equal remainders.
    """
    # RandomState's stream is frozen by NumPy: the share is the same in every version.
    generator = np.random.RandomState(0)
    rank = rank_in_class(labels, generator.permutation(len(labels)))
    size = np.bincount(labels)
    most, quota = np.maximum(size - 1, 0), size * share
    taken = np.minimum(np.floor(quota + 1e-9).astype(np.int64), most)
    total = min(round(len(labels) * share), int(most.sum()))
    chance = generator.permutation(len(size))
    while taken.sum() < total:  # again only if classes ran out of images
        open_classes = np.flatnonzero(taken < most)
        remainder = np.round(quota - taken, 9)[open_classes]  # equal remainders differ by rounding errors
        order = open_classes[np.lexsort((chance[open_classes], -remainder))]
        taken[order[: total - taken.sum()]] += 1
    return rank < taken[labels]
