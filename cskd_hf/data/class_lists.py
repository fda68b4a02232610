"""Parquet and Arrow files that each carry their own list of classes.

`datasets` reads every file with the class list of the first one. This module reads each file with its own list.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets

from cskd_hf.data.columns import images_only, require_columns
from cskd_hf.data.labels import StoredLabels, by_index, join_labels, label_kind, some, stored_labels
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

Files = Mapping[str, Sequence[str]]  # of each split


def open_tables(
    files: Files, data: DataSection, load: Callable[[Files], DatasetDict], described: Features | None, description: str
) -> DatasetDict:
    """The splits of some files; each file is read with its own class list.

    Args:
        load: reads files that agree about their classes.
        described: the features stated beside the files. Its list names the classes of a file without one.
        description: where `described` is stated, for messages.

    Raises:
        UserError: a file's classes cannot be matched with the others'.
    """
    column = data.label_column
    assert column is not None
    feature = None if described is None else described.get(column)
    stated = tuple(feature.names) if isinstance(feature, ClassLabel) else None
    lists = {file: _class_list(file, column, stated) for of_split in files.values() for file in of_split}
    if set(lists.values()) <= {stated} or (stated is None and len(set(lists.values())) == 1):
        return load(files)
    for file, names in lists.items():
        unstated = [] if stated is None or isinstance(names, str) else [name for name in names if name not in stated]
        if unstated:
            raise UserError(
                f"data.dataset: {file} lists classes that {description} lacks: {some(unstated)}; correct one of them"
            )
    return DatasetDict(
        {split: _by_class_list(split, of_split, lists, data, load, stated) for split, of_split in files.items()}
    )


def _class_list(file: str, column: str, stated: tuple[str, ...] | None) -> tuple[str, ...] | str:
    """The names of a file's classes; without a list, what its label column holds."""
    if file.endswith(".parquet"):
        schema = pq.read_schema(file)
    else:
        with pa.memory_map(file) as source:
            try:
                schema = pa.ipc.open_stream(source).schema
            except pa.ArrowInvalid:
                schema = pa.ipc.open_file(source).schema
    if column not in schema.names:
        return "no such column"
    kind = label_kind(schema.field(column).type) or str(schema.field(column).type)
    if kind == "integers":
        metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        feature = ((metadata.get("info") or {}).get("features") or {}).get(column) or {}
        if "names" in feature:
            names = tuple(map(str, feature["names"]))
            return names if stated is None or not _renamed(names, stated) else stated
    # `datasets` looks names up in the stated list.
    return stated if stated is not None and kind in ("integers", "names") else kind


def _renamed(names: tuple[str, ...], stated: tuple[str, ...]) -> bool:
    """Whether the lists differ only by the spelling of some classes: none has another number."""
    pairs = zip(names, stated, strict=False)
    return len(names) == len(stated) and all(a == b or (a not in stated and b not in names) for a, b in pairs)


def _by_class_list(
    split: str,
    files: Sequence[str],
    lists: Mapping[str, tuple[str, ...] | str],
    data: DataSection,
    load: Callable[[Files], DatasetDict],
    stated: tuple[str, ...] | None,
) -> Dataset:
    """One split; neighbouring files with equal lists are read together."""
    groups = [(names, list(group)) for names, group in itertools.groupby(files, key=lists.__getitem__)]
    parts = [load({split: group})[split] for _, group in groups]
    if len(parts) == 1 and isinstance(groups[0][0], str):
        return parts[0]
    assert data.label_column is not None
    stored, images = [], []
    for (names, group), part in zip(groups, parts, strict=True):
        where = f"split {split!r}" + (f", file {Path(group[0]).name}" if len(groups) > 1 else "")
        require_columns(part, where, data)
        own_names = names if isinstance(names, tuple) else None
        stored.append(stored_labels(part, data.label_column, where, own_names))
        images.append(images_only(part, where, data))
    if stated is not None:  # its order
        stored.append(StoredLabels("the description", "names", np.empty(0, np.int64), stated, listed=True))
    if data.labels == "index":
        stored = by_index(stored)
    labels, class_names = join_labels(stored, data.label_column)
    merged = concatenate_datasets(images)
    if data.image_column is not None and data.image_column != "image":
        merged = merged.rename_column("image", data.image_column)
    return merged.add_column(data.label_column, np.concatenate(labels), feature=ClassLabel(names=list(class_names)))


def open_saved(folder: Path, dataset: Dataset, split: str, data: DataSection) -> Dataset:
    """A split that `save_to_disk` wrote, as `load_from_disk` reads it unless its files have lists of their own."""
    files = {split: [entry["filename"] for entry in dataset.cache_files]}

    def load(chosen: Files) -> DatasetDict:
        if chosen is files:
            return DatasetDict({split: dataset})
        parts = [Dataset.from_file(file) for of_split in chosen.values() for file in of_split]
        return DatasetDict({split: concatenate_datasets(parts)})

    return open_tables(files, data, load, dataset.features, f"{folder}/dataset_info.json")[split]
