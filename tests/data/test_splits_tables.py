"""Tables in every layout and CSV files: labels, classes and images, without decoding."""

from __future__ import annotations

import os
import tracemalloc

import numpy as np
import pytest
from datasets import ClassLabel, DatasetDict, Value
from PIL import Image as PillowImage
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

from cskd_hf.data.decode import UnreadableImageError, decode
from cskd_hf.data.duplicates import image_digests
from cskd_hf.data.sources import OpenedSplits
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG

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


@pytest.mark.parametrize("name", sorted(set(CATALOG) - {"digits"}))
def test_a_local_copy_of_a_catalog_set_loads_with_its_columns(tmp_path, name):
    entry = CATALOG[name]
    columns = {"image_column": entry.image_column, "label_column": entry.label_column}
    label = ClassLabel(names=[f"class {number}" for number in range(entry.num_classes)])
    rows = [{"bytes": png(level), "path": None} for level in range(3)]
    labels = [entry.num_classes - 1, 0, 1]
    splits = {
        entry.train_split: table(labels, label, **columns, images=rows),
        entry.test_split: table(labels[::-1], label, **columns, images=rows),
    }
    assert set(splits) <= set(entry.num_images)
    root = as_parquet(tmp_path / "copy", **splits)
    images = load(root, train_split=entry.train_split, test_split=entry.test_split, **columns)
    assert images.num_classes == entry.num_classes
    assert images.train.labels.tolist() == labels
    assert images.test.labels.tolist() == labels[::-1]
    assert [level_of(images.test, index) for index in range(3)] == [0, 1, 2]


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
    images = load(as_parquet(tmp_path / "d", train=table([0, 0, 2, 2], ABC), test=table([1], ABC)))
    assert images.num_classes == 3
    assert images.notes == ("1 of 3 classes have no training image: bee",)


@pytest.mark.parametrize("save", LAYOUTS)
def test_images_can_be_paths(tmp_path, save):
    for level in range(3):
        write(tmp_path, f"{level}.png", content=png(level))
    paths = [str(tmp_path / f"{level}.png") for level in range(3)]
    split = table([0, 1, 2], ABC, Value("string"), images=paths)
    images = load(save(tmp_path / "d", train=split, test=split))
    assert [level_of(images.train, index) for index in (2, 0)] == [2, 0]
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
    monkeypatch.setattr("cskd_hf.data.splits.open_splits", lambda data, splits: OpenedSplits(loaded, {}))
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
    numbers = np.random.default_rng(0).integers(0, 1000, 200_000)
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
    assert peak < 20e6


# CSV files


def test_a_csv_lists_paths_and_labels(tmp_path):
    for file in ("a/1.png", "a/with, comma.png", "b/ü 2.png"):
        (tmp_path / "pictures" / file).parent.mkdir(parents=True, exist_ok=True)
        PillowImage.new("RGB", (4, 4), (len(file), 0, 0)).save(tmp_path / "pictures" / file)
    absolute = tmp_path / "pictures" / "b" / "ü 2.png"
    (tmp_path / "train.csv").write_text(
        f'file,species,note\npictures/a/1.png,10,x\n"pictures/a/with, comma.png",2,y\n{absolute},10,\n',
        encoding="utf-8",
    )
    (tmp_path / "val.csv").write_text("file,species,note\npictures/a/1.png,2,\n", encoding="utf-8")
    images = load(tmp_path, test_split="val", image_column="file", label_column="species")
    assert images.train.class_names == ("2", "10")  # sorted as numbers
    assert images.train.labels.tolist() == [1, 0, 1]
    assert images.test.labels.tolist() == [0]
    red = [np.asarray(decode(image))[0, 0, 0] for image in images.train.fetch(range(3))]
    assert red == [len("a/1.png"), len("a/with, comma.png"), len("b/ü 2.png")]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("file,label\n1.png,a\n2.png,b\n", "no column 'image'; it has file, label"),
        ("image,species\n1.png,a\n2.png,b\n", "no column 'label'; it has image, species"),
        ("image,label\n1.png,a\n2.png,\n", "1 of 2 rows of split 'train' have no label"),
        ("image,label\n1.png,a\n2.png\n", "train|CSV parse error"),
        ("", "Empty CSV"),
    ],
)
def test_a_malformed_csv_is_a_one_line_error(tmp_path, train, message):
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text("image,label\n1.png,a\n")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "names",
    [
        ["1", "001", "01"],
        ["NA", "nan", "null", "None"],
        ["1.0", "1.50", "1e3", "inf"],
        ["true", "False", "0"],
        ["2024-01-01", "12:30", "1970-01-01 00:00:00"],
        ["07", "a"],
    ],
)
def test_csv_labels_are_text(tmp_path, names):
    rows = "".join(f"{name}.png,{name}\n" for name in names)
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(f"image,label\n{rows}")
    train = load(tmp_path).train
    assert [train.class_names[label] for label in train.labels] == names
    assert [image["path"] for image in train.fetch(range(len(names)))] == [
        str(tmp_path / f"{name}.png") for name in names
    ]


def test_a_path_to_a_pipe_or_device_is_an_unreadable_image(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\npipe.png,a\n/dev/zero,b\n")
    train = load(tmp_path).train
    for image in train.fetch([0, 1]):
        with pytest.raises(UnreadableImageError):
            decode(image)
    assert len(image_digests(train)) == 2


def test_splits_whose_csv_labels_look_like_other_types_have_the_same_classes(tmp_path):
    (tmp_path / "train.csv").write_text("image,label\n1,1\n2,2\n")
    (tmp_path / "test.csv").write_text("image,label\n1,1\n2,x\n")
    images = load(tmp_path)
    assert images.train.class_names == ("1", "2", "x")
    assert images.test.labels.tolist() == [0, 2]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_csv_with_a_byte_order_mark_is_decoded(tmp_path, encoding):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\n1.png,é\n2.png,知\n", encoding=encoding)
    assert load(tmp_path).train.class_names == ("é", "知")


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("cp1252", "line 2, is not UTF-8 text"), ("latin-1", "line 2, is not"), ("utf-16-le", "zero bytes|not UTF-8")],
)
def test_a_csv_in_another_encoding_is_an_error(tmp_path, encoding, message):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\n1.png,café\n2.png,b\n", encoding=encoding)
    with pytest.raises(UserError, match=rf"/\w+\.csv.*({message}).*; save it as UTF-8"):
        load(tmp_path)


def test_a_missing_csv_split_lists_the_existing_ones(tmp_path):
    (tmp_path / "train.csv").write_text("image,label\n1.png,a\n2.png,b\n")
    with pytest.raises(UserError, match="no split 'test'; it has train"):
        load(tmp_path)
