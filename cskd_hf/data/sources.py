"""Where images come from: a Hub set, a folder in one of four shapes, or scikit-learn's digits."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_from_disk
from PIL import Image as PillowImage
from pyarrow import csv

from cskd_hf.data.hub import described_files, open_files, open_hub, same_split
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.sections import DataSection


def open_splits(data: DataSection, splits: list[str]) -> dict[str, Dataset]:
    """The named splits, as stored.

    Raises:
        UserError: no such data or split, or the Hub refuses; the message lists what there is.
    """
    entry = CATALOG.get(data.dataset)
    if entry is not None:  # a folder of the same name is written ./name
        if data.dataset == "digits":
            loaded = _digits()
        elif entry.path is None:
            raise UserError(
                f"data.dataset: the Hub has no {data.dataset} with the official split: make a folder of the original "
                f"archive with {entry.prepare}, and write data.dataset=FOLDER"
            )
        else:
            loaded = open_hub(entry.path, data, splits, entry.data_files)
    elif os.path.isdir(data.dataset):
        loaded = _open_folder(Path(data.dataset), data, splits)
    elif os.path.exists(data.dataset):
        raise UserError(f"data.dataset: {data.dataset} is a file; name its folder")
    else:
        known = entry_of(data.dataset)
        loaded = open_hub(data.dataset, data, splits, {} if known is None else known.data_files)
    stored = {same_split(name): name for name in loaded} | {name: name for name in loaded}
    missing = [split for split in splits if split not in stored and same_split(split) not in stored]
    if missing:
        raise UserError(
            f"data: {data.dataset} has no split {', '.join(map(repr, missing))}; it has {', '.join(loaded) or 'none'}: "
            "set data.train_split, data.test_split or data.holdout"
        )
    return {split: loaded[stored[split if split in stored else same_split(split)]] for split in splits}


def _open_folder(root: Path, data: DataSection, splits: list[str]) -> DatasetDict:
    try:
        if (root / "dataset_dict.json").is_file():
            return load_from_disk(str(root))
        if all((root / split / "state.json").is_file() for split in splits):
            return DatasetDict({split: load_from_disk(str(root / split)) for split in splits})
        if any(root.rglob("*.parquet")):
            return open_files(root, splits, data.config_name, described_files(root, data.config_name))
        if any((root / f"{split}.csv").is_file() for split in splits):
            return _open_csv(root, data, splits)
    except UserError:
        raise
    except Exception as error:  # see open_hub
        raise UserError(f"data.dataset: {root}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    return _open_class_folders(root, splits)


def _open_csv(root: Path, data: DataSection, splits: list[str]) -> DatasetDict:
    """`root/split.csv`: a column of image paths, absolute or relative to `root`, and one of labels."""
    assert data.image_column is not None
    # A class may well be called NA, null or nan: only an empty cell has no label.
    options = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    loaded = {}
    for file in sorted(root.glob("*.csv")):
        if same_split(file.stem) not in set(map(same_split, splits)):
            loaded[file.stem] = Dataset.from_dict({})  # there, should somebody ask what there is
            continue
        table = csv.read_csv(file, convert_options=options)
        if data.image_column in table.column_names and pa.types.is_string(table[data.image_column].type):
            # An absolute path wins over the folder it is joined to.
            paths = [None if path is None else str(root / path) for path in table[data.image_column].to_pylist()]
            column = table.column_names.index(data.image_column)
            table = table.set_column(column, data.image_column, pa.array(paths))
        loaded[file.stem] = Dataset(table)
    return DatasetDict(loaded)


def _open_class_folders(root: Path, splits: list[str]) -> DatasetDict:
    """`root/split/class/**/image`, every split against one list of classes.

    Not `datasets`' imagefolder: that also sorts files into splits by the words in their names, so that
    `train/robin/test_1.jpg` is trained and tested on, and gives each split a class list of its own.
    """
    present = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    missing = [split for split in splits if split not in present]
    if missing:
        raise UserError(
            f"data.dataset: {root} has no folder {', '.join(map(repr, missing))}, but {', '.join(present) or 'none'}; "
            "images lie in split/class/*.jpg, and data.train_split and data.test_split name the splits"
        )
    extensions = {
        extension for extension, name in PillowImage.registered_extensions().items() if name in PillowImage.OPEN
    }
    files: dict[str, list[tuple[str, str]]] = {split: [] for split in splits}
    imageless: list[str] = []
    for split in splits:
        for name in sorted(os.listdir(root / split)):
            folder = root / split / name
            if name.startswith(".") or not folder.is_dir():
                continue
            before, others = len(files[split]), 0
            for parent, below, names in os.walk(folder, followlinks=True):
                below[:] = sorted(name for name in below if not name.startswith("."))
                files[split] += [
                    (os.path.join(parent, file), name)
                    for file in sorted(names)
                    if not file.startswith(".") and os.path.splitext(file)[1].lower() in extensions
                ]
                others += sum(not file.startswith(".") for file in names)
            if others and len(files[split]) == before:
                imageless.append(f"none of the {others} files in {folder}")
        for path, _ in files[split]:
            if not path.isascii() and path != path.encode(errors="replace").decode():
                raise UserError(f"data.dataset: the file name {os.fsencode(path)!r} is not UTF-8; rename it")
        if not files[split]:
            raise UserError(f"data.dataset: {root / split} has no images; they lie in {root / split}/class/*.jpg")
    if imageless:  # a class would vanish without a word
        raise UserError(
            f"data.dataset: {imageless[0]} has the extension of an image that Pillow reads; rename or convert them, or "
            "remove the folder"
        )
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
