"""Where images come from: a Hub dataset, a folder in one of several layouts, or scikit-learn's digits."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, load_from_disk
from PIL import Image as PillowImage

from cskd_hf.data.choose import Choose, choose_splits, written_names
from cskd_hf.data.class_folders import open_class_folders, split_folders
from cskd_hf.data.class_lists import open_saved
from cskd_hf.data.columns import join_paths
from cskd_hf.data.draws import rank_in_class
from cskd_hf.data.formats import readable_extensions
from cskd_hf.data.hub import download, explain_cache
from cskd_hf.data.listings import METADATA, open_listings
from cskd_hf.data.table_files import described_files, open_files
from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.catalog import CATALOG, entry_of
from cskd_hf.recipe.sections import DataSection

ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}
EXTRACT = "extract the images, and write data.dataset= and the folder that they are in"


class OpenedSplits(NamedTuple):
    """Splits as stored.

    Attributes:
        tables: role ("train", "test", "holdout") → rows.
        names: role → the split's name, as the recipe writes it, else as in the data.
        notes: role → remarks, such as the files left out.
    """

    tables: dict[str, Dataset]
    names: dict[str, str]
    notes: dict[str, tuple[str, ...]]


def open_splits(data: DataSection, train: bool = True) -> OpenedSplits:
    """The splits that `data` names, or else those that fit, see `choose_splits`.

    Args:
        train: False: for testing alone.

    Raises:
        UserError: no such data or split, or the Hub does not serve it; the message says what to write instead.
    """

    def choose(available: Iterable[str]) -> list[str]:
        return list(choose_splits(data, list(available), train).values())

    loaded, notes = _open(data, choose)
    chosen = choose_splits(data, list(loaded), train)
    return OpenedSplits(
        {role: loaded[name] for role, name in chosen.items()},
        {role: written_names(data).get(role, name) for role, name in chosen.items()},
        {role: tuple(notes.get(name, ())) for role, name in chosen.items()},
    )


def _open(data: DataSection, choose: Choose) -> tuple[Mapping[str, Dataset], Mapping[str, Sequence[str]]]:
    """The chosen splits, perhaps among others, and remarks about them."""
    entry = CATALOG.get(data.dataset)
    if entry is not None:  # a folder of the same name is written ./name
        if data.dataset == "digits":
            return _digits(), {}
        if entry.path is None:
            raise UserError(
                f"data.dataset: the Hub has no {data.dataset} with the official split: convert the original archive: "
                f"from a checkout, python {entry.prepare} ARCHIVE OUT; then write data.dataset=./OUT"
            )
        return _open_folder(*download(entry.path, data, choose, entry.data_files), data, choose)
    if os.path.isdir(data.dataset):
        root = Path(data.dataset)
        return _open_folder(root, described_files(root, data.config_name), data, choose)
    if os.path.exists(data.dataset):
        todo = EXTRACT if Path(data.dataset).suffix.lower() in ARCHIVES else "name its folder"
        raise UserError(f"data.dataset: {data.dataset} is a file; {todo}")
    known = entry_of(data.dataset)
    files = {} if known is None else known.data_files
    return _open_folder(*download(data.dataset, data, choose, files), data, choose)


def _open_folder(
    root: Path, patterns: Mapping[str, list[str]], data: DataSection, choose: Choose
) -> tuple[Mapping[str, Dataset], Mapping[str, Sequence[str]]]:
    try:
        saved = _open_saved(root, data, choose)
        if saved:
            return saved, {}
        names = [name for _, _, files in os.walk(root) for name in files if name not in METADATA]
        suffixes = {os.path.splitext(name)[1].lower() for name in names}
        if suffixes & {".parquet", ".arrow"} or (patterns and ".csv" in suffixes):
            return open_files(root, choose, data, patterns), {}
        listed = open_listings(root, choose, data)
        if listed is not None:
            return listed
        packed = set() if suffixes & readable_extensions() else suffixes & ARCHIVES  # not beside extracted images
        if packed and ".tar" not in packed:
            raise UserError(f"data.dataset: {data.dataset} has no images outside of its {min(packed)} files; {EXTRACT}")
        if packed or not patterns.keys() <= split_folders(root).keys():
            return open_files(root, choose, data, patterns), {}
        return open_class_folders(root, choose)
    except UserError:
        raise
    except Exception as error:  # `datasets` raises a dozen unrelated types
        cause = error.__cause__ or error  # behind "An error occurred while generating the dataset"
        reason = explain_cache(error) or f"{type(cause).__name__}: {one_line(cause)}"
        raise UserError(f"data.dataset: {root}: {reason}") from error


def _open_saved(root: Path, data: DataSection, choose: Choose) -> dict[str, Dataset]:
    """The chosen splits that `save_to_disk` wrote: whole, one folder per split, or one, `train`; none if none are here.

    Files of `map` and `shuffle` beside them, cache-*.arrow, are no part of them.
    """
    if (root / "dataset_dict.json").is_file():
        folders = {name: root / name for name in json.loads((root / "dataset_dict.json").read_text())["splits"]}
    else:
        folders = {path.parent.name: path.parent for path in sorted(root.glob("*/state.json"))}
        if not folders and (root / "state.json").is_file():
            folders = {"train": root}
    saved = {name: load_from_disk(str(folders[name])) for name in choose(folders)} if folders else {}
    return {name: join_paths(open_saved(folders[name], table, name, data), root, data) for name, table in saved.items()}


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
