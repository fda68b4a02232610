"""Files with images in them, of a folder or of a Hub repository's copy: Parquet, Arrow, WebDataset tars."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Image, concatenate_datasets, load_dataset
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from cskd_hf.data.choose import Choose
from cskd_hf.data.class_lists import Files, open_tables
from cskd_hf.data.columns import join_paths
from cskd_hf.data.listings import read_csv
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

_BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv", ".tar": "webdataset"}


def open_files(
    root: Path, choose: Choose, data: DataSection, patterns: Mapping[str, list[str]]
) -> Mapping[str, Dataset]:
    """The chosen splits; the files of others are not read.

    Args:
        patterns: split → patterns of its files; {}: `datasets` finds the split in the names of files and folders.
    """
    files = _files_by_split(root, data.config_name, patterns)
    suffixes = {Path(file).suffix for of_split in files.values() for file in of_split}
    suffix = next((suffix for suffix in _BUILDERS if suffix in suffixes), None)
    if suffix is None:  # images by the README's patterns
        return _prepare(str(root), files, name=data.config_name)
    files = {name: [file for file in of_split if file.endswith(suffix)] for name, of_split in files.items()}
    chosen = {name: files[name] for name in choose([name for name in files if files[name]])}
    for name, of_split in chosen.items():
        if not any("-of-" in pattern for pattern in patterns.get(name, ())):  # else the README selects shards
            _require_whole(name, of_split)
    if suffix == ".csv":
        return {name: read_csv(root, of_split, data) for name, of_split in chosen.items()}
    # Files not written by `datasets` have their features only in the README.
    infos = DatasetInfosDict.from_directory(str(root))
    info = infos.get(data.config_name or "default") or (next(iter(infos.values())) if len(infos) == 1 else None)
    features = None if info is None else info.features

    def load(of_splits: Files) -> DatasetDict:
        escaped = {name: list(map(glob.escape, of_split)) for name, of_split in of_splits.items()}
        return _prepare(_BUILDERS[suffix], of_splits, data_files=escaped, features=features)

    if suffix == ".tar":
        return {name: _two_columns(table, data) for name, table in load(chosen).items()}
    tables = open_tables(chosen, data, load, features, f"{root}/README.md")
    return {name: join_paths(table, root, data) for name, table in tables.items()}


def _files_by_split(root: Path, config_name: str | None, patterns: Mapping[str, list[str]]) -> dict[str, list[str]]:
    files = {
        name: sorted(str(file) for pattern in of_split for file in root.glob(pattern) if file.is_file())
        for name, of_split in patterns.items()
    }
    if any(files.values()):
        return files
    base = glob.escape(str(root / (_described(root, config_name).get("data_dir") or "")))
    found = DataFilesDict.from_patterns(get_data_patterns(base), base_path=base)
    return {str(name): list(map(str, of_split)) for name, of_split in found.items()}


def _require_whole(split: str, files: Sequence[str]) -> None:
    """Raises UserError if shards, `train-00000-of-00003.parquet`, are missing or of two exports."""
    shards: dict[str, list[tuple[int, int]]] = {}
    for file in files:
        if match := re.fullmatch(r"(.+)-(\d+)-of-(\d+)(-[0-9a-f]+)?\.\w+", file):
            shards.setdefault(match[1], []).append((int(match[3]), int(match[2])))
    for prefix, found in shards.items():
        total, first = max(found)[0], min(number for _, number in found)  # some programs count from 1
        if first > 1 or sorted(found) != [(total, first + number) for number in range(total)]:
            names = f"{Path(prefix).name}-*-of-{total:05d}"
            raise UserError(
                f"data.dataset: split {split!r} has {len(found)} files of the {total} shards {names}: add those that "
                "are missing, or remove those of another export"
            )


_NO_DOT = "with no dot in KEY"


def _two_columns(table: Dataset, data: DataSection) -> Dataset:
    """WebDataset names columns by extension: the images' is taken, and `cls` or a key in `json` for the labels."""
    image, label = str(data.image_column), str(data.label_column)
    pictures = [name for name, feature in table.features.items() if isinstance(feature, Image)]
    if image not in table.column_names and len(pictures) == 1:
        table = table.rename_column(pictures[0], image)
    lacking = table.data[image].null_count if image in table.column_names else 0
    if lacking:  # `datasets` takes the columns from the first five samples, and drops other files
        raise UserError(
            f"data.dataset: {lacking:,} of {len(table):,} samples in the tar files lack an image with the first "
            f"sample's extension; give all images the same, such as KEY.jpg, {_NO_DOT}"
        )
    if label in table.column_names:
        return table
    if "json" in table.column_names and label in (table.features["json"] or {}):
        labels = table.select_columns(["json"]).flatten().select_columns([f"json.{label}"])
        return concatenate_datasets([table, labels.rename_column(f"json.{label}", label)], axis=1)
    if "cls" not in table.column_names:
        raise UserError(
            f"data.label_column: the tar files have no labels, which are KEY.cls or {label!r} in KEY.json beside "
            f"KEY.jpg, {_NO_DOT}; if the folders in them are the classes, extract them"
        )
    return table.rename_column("cls", label)


def _prepare(kind: str, files: Files, **options: Any) -> DatasetDict:
    """`load_dataset` with a cache of its own for each version of the files.

    By itself it finds the cache by their paths and modification times alone, and would serve a file's old content after
    a change that keeps both.
    """
    states = [os.stat(file) for of_split in files.values() for file in of_split]
    # ctime moves with every change of content, and no program can set it.
    version = hashlib.sha256(repr([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in states]).encode()).hexdigest()
    cache = os.path.join(datasets.config.HF_DATASETS_CACHE, f"cskd_hf-{version[:16]}")
    return load_dataset(kind, cache_dir=cache, **options)


def described_files(root: Path, config_name: str | None) -> dict[str, list[str]]:
    """Split → patterns of its files, from the README's `configs`; empty without any."""
    config = _described(root, config_name)
    files, folder = config.get("data_files"), config.get("data_dir")
    return sanitize_patterns(files) if files and not folder else {}


def _described(root: Path, config_name: str | None) -> Mapping[str, Any]:
    """The README's entry for a configuration; empty without any."""
    if not (root / "README.md").is_file():
        return {}
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(root / "README.md").data)
    if not configs:
        return {}
    name = config_name or configs.get_default_config_name()
    if name not in configs:
        read = "is not set" if config_name is None else f"read {config_name!r}"
        raise UserError(f"data.config_name: {read}; the set has {', '.join(configs)}")
    return configs[name]
