"""Where images come from: a Hub dataset, a folder in one of four layouts, or scikit-learn's digits."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from PIL import Image as PillowImage

from cskd_hf.data.class_folders import open_class_folders
from cskd_hf.data.class_lists import open_saved
from cskd_hf.data.csv_files import read_csv
from cskd_hf.data.hub import described_files, explain_cache, open_files, open_hub, same_split
from cskd_hf.data.sampling import rank_in_class
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.sections import DataSection


class OpenedSplits(NamedTuple):
    """Splits as stored, and remarks about some of them, such as the files left out."""

    tables: dict[str, Dataset]
    notes: dict[str, tuple[str, ...]]


def open_splits(data: DataSection, splits: list[str]) -> OpenedSplits:
    """The named splits, as stored.

    Raises:
        UserError: no such data or split, or the Hub does not serve it; the message lists what is available.
    """
    entry = CATALOG.get(data.dataset)
    loaded: Mapping[str, Dataset]
    notes: dict[str, tuple[str, ...]] = {}
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
        loaded, notes = _open_folder(Path(data.dataset), data, splits)
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
    tables = {split: loaded[stored[split if split in stored else same_split(split)]] for split in splits}
    return OpenedSplits(tables, notes)


def _open_folder(root: Path, data: DataSection, splits: list[str]) -> OpenedSplits:
    try:
        tables = _open_tables(root, data, splits)
        if tables is not None:
            return OpenedSplits(tables, {})
        return OpenedSplits(*open_class_folders(root, splits))
    except UserError:
        raise
    except Exception as error:  # see open_hub
        reason = explain_cache(error) or f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(f"data.dataset: {root}: {reason}") from error


def _open_tables(root: Path, data: DataSection, splits: list[str]) -> dict[str, Dataset] | None:
    """The splits of a folder of tables; None if it has none."""
    saved: dict[str, Dataset] = {}
    if (root / "dataset_dict.json").is_file():
        saved = load_from_disk(str(root))
    elif all((root / split / "state.json").is_file() for split in splits):
        saved = {split: load_from_disk(str(root / split)) for split in splits}
    if saved:
        requested = {split for split in saved if same_split(split) in set(map(same_split, splits))}
        return {
            split: open_saved(root / split, table, split, data) if split in requested else table
            for split, table in saved.items()
        }
    if any(name.endswith((".parquet", ".arrow")) for _, _, names in os.walk(root) for name in names):
        return open_files(root, splits, data, described_files(root, data.config_name))
    if any((root / f"{split}.csv").is_file() for split in splits):
        requested = set(map(same_split, splits))
        # The others are only listed among the available splits.
        return {
            file.stem: read_csv(root, [file], data) if same_split(file.stem) in requested else Dataset.from_dict({})
            for file in sorted(root.glob("*.csv"))
        }
    return None


def _digits() -> DatasetDict:
    """scikit-learn's scans in a fixed random order: of each class 20 for train, 30 for holdout, the rest for test."""
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
