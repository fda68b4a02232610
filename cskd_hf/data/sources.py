"""Where images come from: a Hub dataset, a folder in one of four layouts, or scikit-learn's digits."""

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

from cskd_hf.data.hub import described_files, explain_cache, open_files, open_hub, same_split
from cskd_hf.data.sampling import rank_in_class
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.sections import DataSection


def open_splits(data: DataSection, splits: list[str]) -> dict[str, Dataset]:
    """The named splits, as stored.

    Raises:
        UserError: no such data or split, or the Hub does not serve it; the message lists what is available.
    """
    entry = CATALOG.get(data.dataset)
    if entry is not None:  # a folder of the same name is written ./name
        if data.dataset == "digits":
            loaded = _digits()
        elif entry.path is None:
            raise UserError(
                f"data.dataset: the Hub has no {data.dataset} with the official split: convert the original archive: "
                f"from a checkout, python {entry.prepare} ARCHIVE OUT; then write data.dataset=./OUT"
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
        reason = explain_cache(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"data.dataset: {root}: {reason}") from error
    return _open_class_folders(root, splits)


def _open_csv(root: Path, data: DataSection, splits: list[str]) -> DatasetDict:
    """`root/split.csv`: a column of image paths, absolute or relative to `root`, and one of labels."""
    assert data.image_column is not None
    # A class may be called NA, null or nan: only an empty cell is a missing label.
    options = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    loaded = {}
    for file in sorted(root.glob("*.csv")):
        if same_split(file.stem) not in set(map(same_split, splits)):
            loaded[file.stem] = Dataset.from_dict({})  # only listed among the available splits
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
    """`root/split/class/**/image`, all splits sharing one list of classes.

    Not `datasets`' imagefolder, which also assigns files to splits by words in their names (`train/robin/test_1.jpg`
    would be trained and tested on) and gives each split its own list of classes.
    """
    present = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    missing = [split for split in splits if split not in present]
    if missing:
        raise UserError(
            f"data.dataset: {root} has no folder {', '.join(map(repr, missing))}, but {', '.join(present) or 'none'}; "
            "images lie in split/class/*.jpg, and data.train_split and data.test_split name the splits"
        )
    files = {split: _class_folder_images(root / split) for split in splits}
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


def _class_folder_images(folder: Path) -> list[tuple[str, str]]:
    """(path, class) of every image below `folder/class`, sorted; hidden files and folders are skipped."""
    kinds = PillowImage.registered_extensions().items()
    extensions = {extension for extension, kind in kinds if kind in PillowImage.OPEN}
    images: list[tuple[str, str]] = []
    imageless: list[str] = []
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") or not (folder / name).is_dir():
            continue
        num_before, num_files = len(images), 0
        for parent, subfolders, files in os.walk(folder / name, followlinks=True):
            subfolders[:] = sorted(subfolder for subfolder in subfolders if not subfolder.startswith("."))
            visible = sorted(file for file in files if not file.startswith("."))
            num_files += len(visible)
            images += [
                (os.path.join(parent, file), name)
                for file in visible
                if os.path.splitext(file)[1].lower() in extensions
            ]
        if num_files and len(images) == num_before:
            imageless.append(f"none of the {num_files} files in {folder / name}")
    for path, _ in images:
        if not path.isascii() and path != path.encode(errors="replace").decode():
            raise UserError(f"data.dataset: the file name {os.fsencode(path)!r} is not UTF-8; rename it")
    if not images:
        raise UserError(f"data.dataset: {folder} has no images; put them in {folder}/class/*.jpg")
    if imageless:  # the class would vanish silently
        raise UserError(
            f"data.dataset: {imageless[0]} has the extension of an image that Pillow reads; rename or convert them, or "
            "remove the folder"
        )
    return images


def _digits() -> DatasetDict:
    """scikit-learn's scans: 20 of each class to train, 30 held out, the rest to test, in a fixed random order."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    rank = rank_in_class(scans.target, np.random.RandomState(0).permutation(len(scans.target)))
    bounds = {"train": (0, 20), "holdout": (20, 50), "test": (50, len(rank))}

    def png(scan: np.ndarray) -> dict[str, Any]:
        buffer = io.BytesIO()
        PillowImage.fromarray((scan * (255 / 16)).round().astype(np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    features = Features({"image": Image(decode=False), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    splits = {}
    for split, (low, high) in bounds.items():
        rows = np.flatnonzero((low <= rank) & (rank < high))
        images = [png(scan) for scan in scans.images[rows]]
        splits[split] = Dataset.from_dict({"image": images, "label": scans.target[rows]}, features=features)
    return DatasetDict(splits)
