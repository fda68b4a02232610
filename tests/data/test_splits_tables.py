"""Tables in every layout: labels, classes and images, without decoding."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Value, load_from_disk
from small_sets import (
    ABC,
    GARBAGE,
    LAYOUTS,
    as_dataset_dict,
    as_parquet,
    as_split_folders,
    level_of,
    load,
    png,
    section,
    table,
    write,
)

from cskd_hf.data.sources import OpenedSplits
from cskd_hf.data.splits import load_images

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("save", LAYOUTS)
def test_every_layout_loads_without_decoding_an_image(tmp_path, save):
    images = load(save(tmp_path / "d", train=table([2, 0, 1, 0], ABC), test=table([1, 2], ABC)))
    assert images.train.labels.tolist() == [2, 0, 1, 0]
    assert images.test.labels.tolist() == [1, 2]
    assert images.train.labels.dtype == np.int64
    assert images.train.class_names == ("ant", "bee", "cat")
    assert images.train.rows.tolist() == [0, 1, 2, 3]
    assert (images.train.name, images.test.name, images.holdout) == ("train", "test", None)
    assert images.train.fetch([3, 1]) == [{"bytes": GARBAGE, "path": None}] * 2
    assert images.train.dataset.column_names == ["image"]


@pytest.mark.parametrize("change", [lambda rows: rows.map(lambda row: {"label": 1 - row["label"]}), Dataset.shuffle])
@pytest.mark.parametrize("place", ["", "train"])
def test_what_map_and_shuffle_cache_beside_saved_rows_is_no_part_of_them(tmp_path, change, place):
    images = [png(level) for level in range(8)]
    table([0, 1] * 4, ABC, images=images).save_to_disk(str(tmp_path / place))
    change(load_from_disk(str(tmp_path / place)))
    assert list((tmp_path / place).glob("cache-*.arrow"))
    loaded = load(tmp_path, test_split=0.25)
    shown = [
        (level_of(split, row), split.labels[row]) for split in (loaded.train, loaded.test) for row in range(len(split))
    ]
    assert sorted(shown) == [(level, level % 2) for level in range(8)]


def test_a_saved_format_does_not_matter(tmp_path):
    split = table([0, 1, 2], ABC, images=[png(level) for level in range(3)])
    train, test = split.with_format("pandas", columns=["label"]), split.with_format("arrow")
    images = load(as_dataset_dict(tmp_path, train=train, test=test))
    assert [level_of(own, 1) for own in (images.train, images.test)] == [1, 1]


def test_string_labels_need_no_class_list(tmp_path):
    text = Value("string")
    images = load(
        as_parquet(tmp_path / "d", train=table(["wren", "crow", "wren"], text), test=table(["crow", "owl"], text))
    )
    assert images.train.class_names == ("crow", "owl", "wren")
    assert images.train.labels.tolist() == [2, 0, 2]
    assert images.test.labels.tolist() == [0, 1]


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint16"])
def test_integer_labels_need_neither_a_class_list_nor_to_start_at_0(tmp_path, dtype):
    images = load(
        as_parquet(tmp_path / "d", train=table([3, 1, 10, 3], Value(dtype)), test=table([10, 2], Value(dtype)))
    )
    assert images.train.class_names == ("1", "2", "3", "10")
    assert images.train.labels.tolist() == [2, 0, 3, 2]
    assert images.test.labels.tolist() == [3, 1]


def test_classes_are_matched_across_splits_by_name(tmp_path):
    other_order = ClassLabel(names=["cat", "ant", "bee"])
    root = as_split_folders(tmp_path / "d", train=table([0, 1, 2], ABC), test=table([0, 1, 2], other_order))
    images = load(root)
    assert images.train.class_names == images.test.class_names == ("ant", "bee", "cat")
    assert images.test.labels.tolist() == [2, 0, 1]


def test_empty_classes_count_and_are_noted(tmp_path):
    images = load(as_parquet(tmp_path / "d", train=table([0, 0, 2, 2], ABC), test=table([0, 1], ABC)))
    assert images.num_classes == 3
    assert images.notes == ("1 of 3 classes have no training image: bee",)


@pytest.mark.parametrize("kind", [Value("string"), {"path": Value("string")}], ids=["text", "struct"])
@pytest.mark.parametrize("save", LAYOUTS)
def test_images_can_be_paths_absolute_or_relative_to_the_data(tmp_path, monkeypatch, save, kind):
    for level in range(3):
        write(tmp_path / "d", f"{level}.png", content=png(level))
    write(tmp_path / "other", "0.png", content=png(99))
    monkeypatch.chdir(tmp_path / "other")
    paths = ["0.png", "1.png", str(tmp_path / "d" / "2.png")]
    split = table([0, 1, 2], ABC, kind, images=[{"path": path} for path in paths] if isinstance(kind, dict) else paths)
    paths = [str(tmp_path / "d" / f"{level}.png") for level in range(3)]
    images = load(save(tmp_path / "d", train=split, test=split))
    assert [level_of(images.train, index) for index in range(3)] == [0, 1, 2]
    assert images.train.describe(2) == f"split 'train', row 2, file {paths[2]}"


@pytest.mark.parametrize("binary", ["binary", "large_binary"])
def test_images_can_be_raw_bytes(tmp_path, binary):
    split = table([0, 1], ABC, Value(binary), images=[png(5), png(9)])
    images = load(as_parquet(tmp_path / "d", train=split, test=split))
    assert [level_of(images.train, index) for index in (1, 0)] == [9, 5]
    assert images.train.describe(1) == "split 'train', row 1"


def test_labels_follow_a_selection_or_shuffle(tmp_path, monkeypatch):
    """The raw Arrow table ignores both."""
    rows = [{"bytes": png(level), "path": None} for level in range(6)]
    stored = table([0, 1, 2, 0, 1, 2], ABC, images=rows)
    chosen = [5, 0, 4]
    loaded = DatasetDict(train=stored.select(chosen), test=stored.shuffle(seed=1))
    monkeypatch.setattr(
        "cskd_hf.data.splits.open_splits", lambda data: OpenedSplits(loaded, {name: name for name in loaded}, {})
    )
    images = load("anything")
    assert images.train.labels.tolist() == [2, 0, 1]
    assert [level_of(images.train, index) for index in range(3)] == chosen
    for index in range(6):
        assert images.test.labels[index] == level_of(images.test, index) % 3


@pytest.mark.parametrize("requested", ["val", "valid", "validation"])
@pytest.mark.parametrize("stored", ["val", "valid", "validation"])
def test_val_valid_and_validation_name_one_split(tmp_path, stored, requested):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), **{stored: table([2, 2, 1], ABC)})
    images = load(root, test_split=requested)
    assert images.test.labels.tolist() == [2, 2, 1]
    assert images.test.name == requested


@pytest.mark.parametrize("column", ["string", "class"])
def test_reading_labels_makes_no_python_object_per_row(tmp_path, column):
    names = [f"{number:04d} " + "a very long class name " * 8 for number in range(1000)]
    numbers = np.random.default_rng(0).integers(0, 1000, 50_000)
    images = ["x.jpg"] * len(numbers)
    label = ClassLabel(names=names) if column == "class" else Value("string")
    labels = numbers if column == "class" else [names[number] for number in numbers]
    train = table(labels, label, Value("string"), images=images)
    test = table(labels[:2000], label, Value("string"), images=images[:2000])
    root = as_dataset_dict(tmp_path / "d", train=train, test=test)
    del labels, images, train, test
    data = section(root)
    tracemalloc.start()
    images = load_images(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (images.train.labels == numbers).all()
    assert images.train.class_names == tuple(names)
    assert peak < 4e6
