"""A catalog name, Hub id or folder → the splits a run needs, as rows of encoded images with labels 0 … K − 1.

No image is decoded here: labels are read from Arrow, images stay the bytes they were stored as.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from PIL import Image as PillowImage

from cskd_hf.data.catalog import CATALOG, IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.errors import UserError
from cskd_hf.recipe import DataSection, Recipe


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
        return self.dataset[list(indices)]["image"]

    def describe(self, index: int, image: Mapping[str, Any] | None = None) -> str:
        """Where a row comes from, for people: split, row as stored, file."""
        path = (self.fetch([index])[0] if image is None else image)["path"]
        return f"split {self.name!r}, row {self.rows[index]}" + (f", file {path}" if path else "")

    def take(self, indices: np.ndarray, name: str) -> ImageSplit:
        return ImageSplit(
            name, self.dataset.select(indices), self.labels[indices], self.class_names, self.rows[indices]
        )


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


def resolve(recipe: Recipe) -> Recipe:
    """Fill the `data` and `transform` keys left null from the catalog; no data is touched.

    The pretrained weights' own statistics come before the catalog's: those are what the backbone was trained with.
    """
    entry = CATALOG.get(recipe.data.dataset)
    defaults = {
        "train_split": "train",
        "test_split": "test",
        "holdout": 0.0,
        "image_column": "image",
        "label_column": "label",
    }
    statistics = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if entry is not None:
        defaults |= {key: getattr(entry, key) for key in defaults if getattr(entry, key) is not None}
        statistics = {"mean": entry.mean, "std": entry.std}
    if recipe.model.pretrained:
        from timm.models import get_pretrained_cfg

        pretrained = get_pretrained_cfg(recipe.model.model_name)
        if pretrained is not None:
            statistics = {"mean": pretrained.mean, "std": pretrained.std}
    return recipe.replace(
        data={key: value for key, value in defaults.items() if getattr(recipe.data, key) is None},
        transform={key: value for key, value in statistics.items() if getattr(recipe.transform, key) is None},
    )


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
    if len(set(wanted)) < len(wanted):
        raise UserError(
            f"data: the splits {', '.join(wanted)} name one of them twice: a result on it would mean nothing"
        )

    tables = {split: table for split, table in zip(wanted, _open(data, wanted), strict=True)}
    labels, class_names, notes = _labels(tables, data)
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
        train, holdout = (
            train.take(np.flatnonzero(~held), train.name),
            train.take(np.flatnonzero(held), train.name),
        )

    present = np.bincount(train.labels, minlength=len(class_names))
    if (present == 0).any():
        empty = [class_names[label] for label in np.flatnonzero(present == 0)]
        notes.append(f"{len(empty)} of {len(class_names)} classes have no training image: {_some(empty)}")
    if (present == 1).any():
        alone = [class_names[label] for label in np.flatnonzero(present == 1)]
        notes.append(f"{len(alone)} classes have one training image, paired with itself: {_some(alone)}")
    return Images(train, holdout, test, tuple(notes))


def held_out(labels: np.ndarray, share: float) -> np.ndarray:
    """(N,) bool: a stratified share, the same for every seed of a recipe; a class always keeps one image in training."""
    # RandomState's stream is frozen by NumPy: the share is the same in every version.
    shuffled = np.random.RandomState(0).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    _, start, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(start, count)
    quota = np.minimum(np.rint(count * share), count - 1)
    held = np.zeros(len(labels), dtype=bool)
    held[by_class] = rank < np.repeat(quota, count)
    return held


def _open(data: DataSection, splits: list[str]) -> list[Dataset]:
    entry = CATALOG.get(data.dataset)
    if os.path.isdir(data.dataset):
        loaded = _open_folder(Path(data.dataset), splits)
    elif entry is not None and entry.path is None:
        loaded = _digits()
    elif os.path.exists(data.dataset):
        raise UserError(f"data.dataset: {data.dataset} is a file; name its folder")
    else:
        loaded = _open_hub(entry.path if entry is not None and entry.path else data.dataset, data)
    # `datasets` itself renames folders and files called val or valid.
    aliases = {"val": "validation", "valid": "validation"}
    found = [split if split in loaded else aliases.get(split, split) for split in splits]
    missing = [split for split in found if split not in loaded]
    if missing:
        raise UserError(
            f"data: {data.dataset} has no split {', '.join(map(repr, missing))}; it has {', '.join(loaded) or 'none'}: "
            "set data.train_split and data.test_split"
        )
    return [loaded[split] for split in found]


def _open_hub(path: str, data: DataSection) -> DatasetDict:
    try:
        return load_dataset(path, name=data.config_name, revision=data.revision)
    except Exception as error:  # a dozen unrelated types: connection, gating, missing script, bad revision, …
        if path.count("/") != 1:
            names = f"a folder, a Hub id (owner/name), or one of the catalog's: {', '.join(CATALOG)}"
            raise UserError(f"data.dataset: {data.dataset!r} is none of {names}") from None
        reason = " ".join(str(error).split())
        raise UserError(
            f"data.dataset: the Hub set {path!r} could not be loaded: {type(error).__name__}: {reason}"
        ) from error


def _open_folder(root: Path, splits: list[str]) -> DatasetDict:
    if (root / "dataset_dict.json").is_file():
        return load_from_disk(str(root))
    if all((root / split / "state.json").is_file() for split in splits):
        return DatasetDict({split: load_from_disk(str(root / split)) for split in splits})
    if any(root.rglob("*.parquet")):
        try:
            return load_dataset(str(root))
        except Exception as error:  # see _open_hub
            raise UserError(f"data.dataset: {root}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return _open_class_folders(root, splits)


def _open_class_folders(root: Path, splits: list[str]) -> DatasetDict:
    """`root/split/class/**/image`, every split against one list of classes.

    Not `datasets`' imagefolder: that also sorts files into splits by the words in their names, so that
    `train/robin/test_1.jpg` is trained and tested on, and gives each split a class list of its own.
    """
    present = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    missing = [split for split in splits if split not in present]
    if missing:
        raise UserError(
            f"data.dataset: {root} has no folder {', '.join(map(repr, missing))}; it has {', '.join(present) or 'none'}: "
            "images lie in split/class/*.jpg, and data.train_split and data.test_split name the splits"
        )
    extensions = {
        extension for extension, name in PillowImage.registered_extensions().items() if name in PillowImage.OPEN
    }
    files: dict[str, list[tuple[str, str]]] = {split: [] for split in splits}
    for split in splits:
        for name in sorted(os.listdir(root / split)):
            folder = root / split / name
            if name.startswith(".") or not folder.is_dir():
                continue
            for parent, below, names in os.walk(folder, followlinks=True):
                below.sort()
                files[split] += [
                    (os.path.join(parent, file), name)
                    for file in sorted(names)
                    if not file.startswith(".") and os.path.splitext(file)[1].lower() in extensions
                ]
        if not files[split]:
            raise UserError(f"data.dataset: {root / split} has no images; they lie in {root / split}/class/*.jpg")
    class_names = sorted({name for rows in files.values() for _, name in rows})
    features = Features({"image": Value("string"), "label": ClassLabel(names=class_names)})
    number = {name: label for label, name in enumerate(class_names)}
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [path for path, _ in rows], "label": [number[name] for _, name in rows]}, features=features
            )
            for split, rows in files.items()
        }
    )


def _digits() -> DatasetDict:
    """scikit-learn's scans: of each class, in a fixed random order, 20 to train, 30 held out, the rest to test."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = np.random.RandomState(0).permutation(len(scans.target))
    by_class = order[np.argsort(scans.target[order], kind="stable")]
    _, start, count = np.unique(scans.target[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(order)) - np.repeat(start, count)
    bounds = {"train": (0, 20), "holdout": (20, 50), "test": (50, len(order))}
    rows = {split: np.sort(by_class[(low <= rank) & (rank < high)]) for split, (low, high) in bounds.items()}

    def png(scan: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        PillowImage.fromarray((scan * (255 / 16)).round().astype(np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = Features({"image": Image(decode=False), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {"image": [png(scans.images[row]) for row in chosen], "label": scans.target[chosen]}, features=features
            )
            for split, chosen in rows.items()
        }
    )


def _images_only(table: Dataset, split: str, data: DataSection) -> Dataset:
    assert data.image_column is not None
    _require_column(table, split, data.image_column, "image_column")
    feature = table.features[data.image_column]
    stored = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    if not isinstance(feature, Image) and not stored:
        raise UserError(f"data.image_column: {data.image_column!r} of split {split!r} holds {feature}, not images")
    images = table.select_columns([data.image_column]).cast_column(data.image_column, Image(decode=False))
    return images if data.image_column == "image" else images.rename_column(data.image_column, "image")


def _require_column(table: Dataset, split: str, column: str, key: str) -> None:
    if column not in table.column_names:
        raise UserError(f"data.{key}: split {split!r} has no column {column!r}; it has {', '.join(table.column_names)}")


def _labels(
    tables: Mapping[str, Dataset], data: DataSection
) -> tuple[dict[str, np.ndarray], tuple[str, ...], list[str]]:
    """Every split's labels against one list of classes: (split → (N,) int64, names, notes)."""
    column = data.label_column
    assert column is not None
    raw: dict[str, np.ndarray] = {}
    for split, table in tables.items():
        _require_column(table, split, column, "label_column")
        feature = table.features[column]
        if not isinstance(feature, (ClassLabel, Value)) or str(feature.dtype).startswith("float"):
            raise UserError(
                f"data.label_column: {column!r} of split {split!r} holds {feature}; one class an image is needed"
            )
        # Arrow format decodes no image, and [:] applies a select or shuffle that the raw table does not know of.
        values = table.select_columns([column]).with_format("arrow")[:][column]
        if len(values) == 0:
            raise UserError(f"data: split {split!r} is empty")
        unlabelled = values.null_count or (not isinstance(feature, Value) and int((values.to_numpy() < 0).sum()))
        if unlabelled:
            raise UserError(
                f"data: {unlabelled} of {len(values)} rows of split {split!r} have no label; choose another split"
            )
        array = values.to_numpy(zero_copy_only=False)
        raw[split] = np.array(feature.names)[array] if isinstance(feature, ClassLabel) and feature.names else array

    features = [table.features[column] for table in tables.values()]
    first = features[0]
    if isinstance(first, ClassLabel) and first.names:
        names = list(first.names)  # the data's own order, empty classes included
    else:
        names = sorted({value for values in raw.values() for value in np.unique(values).tolist()})
    known = np.array(names)
    order = np.argsort(known)
    labels, notes = {}, []
    for split, values in raw.items():
        place = np.searchsorted(known, values, sorter=order).clip(max=len(known) - 1)
        number = order[place]
        unknown = known[number] != values
        if unknown.any():
            strange = sorted({str(value) for value in values[unknown]})
            raise UserError(
                f"data: split {split!r} has classes that split {next(iter(raw))!r} does not: {_some(strange)}"
            )
        labels[split] = number.astype(np.int64)
    if len(names) < 2:
        raise UserError(f"data.label_column: {column!r} has the one class {names[0]!r}; a classifier needs two")
    if len({type(feature) for feature in features}) > 1:
        raise UserError(
            f"data.label_column: {column!r} has another type in each split: {', '.join(map(str, features))}"
        )
    return labels, tuple(map(str, names)), notes


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")
