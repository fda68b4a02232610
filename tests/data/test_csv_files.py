"""CSV files: every cell is text, in any encoding that is certain."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image as PillowImage
from small_sets import load, png, section, write

from cskd_hf.data.decode import UnreadableImageError, decode
from cskd_hf.data.duplicates import image_digests
from cskd_hf.data.hub import open_files
from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize(("label", "right"), [("7", True), ("x", True), ("007", False), ("true", False)])
def test_labels_that_datasets_would_change_are_an_error(tmp_path, label, right):
    """The layout of a Hub repository: images and a metadata.csv in each split's folder."""
    for split in ("train", "test"):
        write(tmp_path, f"{split}/1.png", content=png(1))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,label\n1.png,{label}\n")
    if right:
        loaded = open_files(tmp_path, ["train", "test"], section(tmp_path), {})
        assert [str(name) for name in loaded["train"]["label"]] == [label]
        return
    with pytest.raises(
        UserError, match=rf"metadata\.csv has the label '{label}', which was read as a number.* Parquet"
    ):
        open_files(tmp_path, ["train", "test"], section(tmp_path), {})


def test_the_csv_files_of_a_repository_are_read_as_text(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\n1.png,007\n")
    loaded = open_files(tmp_path, ["train", "test"], section(tmp_path), {})
    assert loaded["test"][:] == {"image": [str(tmp_path / "1.png")], "label": ["007"]}
