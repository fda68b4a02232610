"""Files that list images and labels: every cell is text, with any delimiter."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image as PillowImage
from small_sets import load, png, write

from cskd_hf.data.decode import UnreadableImageError, decode
from cskd_hf.data.duplicates import image_digests
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
        (
            "image,label,Fold\n1.png,a,train\n2.png,b,testdata\n",
            "column 'Fold' of split 'train' divides the rows into train, testdata",
        ),
        (
            "image,label,Usage\n1.png,a,Training\n2.png,b,PublicTest\n3.png,b,PrivateTest\n",
            "column 'Usage' of split 'train' divides the rows into Training, PublicTest, PrivateTest",
        ),
        (
            "image,label,is_training_image\n1.png,a,1\n2.png,b,0\n",
            "column 'is_training_image' of split 'train' divides the rows into 1, 0",
        ),
    ],
)
def test_a_malformed_csv_is_a_one_line_error(tmp_path, train, message):
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "test.csv").write_text("image,label\n1.png,a\n")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_column_whose_words_only_contain_those_of_splits_divides_nothing(tmp_path):
    write(tmp_path, "1.png", "2.png")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text(
            "image,label,mode,fold\n1.png,a,interval,device1\n2.png,b,retrieval,value2\n"
        )
    assert len(load(tmp_path).train) == 2


def test_cells_of_several_lines_are_read_in_a_csv_of_more_than_one_block(tmp_path):
    write(tmp_path, "1.png", "2.png")
    caption = "x" * 100
    rows = [f'"{caption}\n{caption}",{number % 2 + 1}.png,{"ab"[number % 2]}\n' for number in range(6000)]
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("".join(["caption,image,label\n", *rows]))
    assert load(tmp_path).train.labels.tolist() == [0, 1] * 3000


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


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_csv_with_a_byte_order_mark_is_decoded(tmp_path, encoding):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image,label\n1.png,é\n2.png,知\n", encoding=encoding)
    assert load(tmp_path).train.class_names == ("é", "知")


@pytest.mark.parametrize(("encoding", "name"), [("utf-16-le", "café"), ("shift-jis", "ソー"), ("utf-8-sig", "\udce9")])
def test_a_csv_in_an_unknown_encoding_is_an_error(tmp_path, encoding, name):
    for split in ("train", "test"):
        text = f"image,label\n1.png,{name}\n2.png,b\n"
        (tmp_path / f"{split}.csv").write_bytes(text.encode(encoding, "surrogateescape"))
    with pytest.raises(UserError, match=r"/\w+\.csv.* is not UTF-8.*; save it as UTF-8"):
        load(tmp_path)


def test_windows_1252_is_read_with_a_note_that_shows_a_word(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("image;label\n1.png;b\n2.png;café\n", encoding="cp1252")
    images = load(tmp_path)
    assert images.train.class_names == ("b", "café")
    assert images.notes[0].startswith("train.csv, line 3, is not UTF-8; read as Windows-1252: 'café'; if it is wrong,")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("others", ["", "a,b;c"])
def test_the_delimiter_is_the_one_that_finds_the_columns(tmp_path, delimiter, others):
    header = delimiter.join(['"image"', "label", *[f'"{others}"'] * bool(others)])
    row = delimiter.join(["1.png", '"x,y;z|"', *["1"] * bool(others)])
    for split in ("train", "test"):
        (tmp_path / f"{split}.tsv").write_text(f"{header}\r\n{row}\r\n{row.replace('x', 'w')}\r\n")
    assert load(tmp_path).train.class_names == ("w,y;z|", "x,y;z|")


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
@pytest.mark.parametrize("label", ["7", "x", "007", "true", "NA"])
def test_labels_of_a_metadata_file_are_text(tmp_path, suffix, label):
    """`datasets`' imagefolder would take 007 for a number."""
    for split in ("train", "test"):
        write(tmp_path, f"{split}/1.png", content=png(1))
        rows = {"csv": f"file_name,label\n1.png,{label}\n1.png,other\n"}
        rows["jsonl"] = (
            f'{{"file_name": "1.png", "label": "{label}", "box": [1]}}\n{{"file_name": "1.png", "label": "other"}}\n'
        )
        (tmp_path / split / f"metadata.{suffix}").write_text(rows[suffix])
    train = load(tmp_path).train
    assert [train.class_names[number] for number in train.labels] == [label, "other"]
    assert train.fetch([0]) == [{"bytes": None, "path": str(tmp_path / "train/1.png")}]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "metadata.jsonl, line 2, is not a JSON object"),
        ("[1]", "metadata.jsonl, line 2, is not a JSON object"),
        ('{"file_name": "2.png", "label": 7}', "metadata.jsonl: a column has values of several types"),
        (
            '{"file_name": "https://example.org/2.png", "label": "b"}',
            "holds 1 addresses, such as https://example.org/2",
        ),
        ('{"file_name": "2.png"}', "1 of 2 rows of split 'train' have no label"),
    ],
)
def test_a_wrong_line_of_a_metadata_file_is_named(tmp_path, line, message):
    (tmp_path / "metadata.jsonl").write_text(f'{{"file_name": "1.png", "label": "a"}}\n{line}\n')
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path, test_split=0.5)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("dataset", [None, ".", "../{}", "train/..", ".link"])
@pytest.mark.parametrize("place", ["", "train"])
def test_images_that_a_metadata_file_does_not_list_are_noted(tmp_path, monkeypatch, place, dataset):
    images = ["1.png", "a/2.png", "3.png", "a/4.JPG", ".hidden/5.png", "notes.txt"]
    write(tmp_path, *(f"train/{name}" for name in images), "test/1.png", "test/2.png")
    for split in ("train", "test"):
        lines = ["./1.png,a", f"{tmp_path}/test/2.png,b" if split == "test" else "a/2.png,b"]
        if place:
            (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines, ""]))
    if not place:
        lines = ["train/1.png,a", "train/a/2.png,b", "test/1.png,a", "./test/2.png,b"]
        (tmp_path / "metadata.csv").write_text("\n".join(["file_name,label", *lines, ""]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".link").symlink_to(tmp_path)
    note, *others = load(dataset.format(tmp_path.name) if dataset else tmp_path).notes
    first = "3.png" if place else "train/3.png"
    folder = place or (dataset if dataset == ".link" else tmp_path.name)
    assert note == f"left out 2 images that {folder}/metadata.csv does not list, such as {first}"
    assert not any("left out" in other for other in others)


def test_metadata_without_labels_beside_class_folders_is_left_out(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    (tmp_path / "train" / "metadata.csv").write_text("file_name,photographer\na/1.png,x\n")
    images = load(tmp_path)
    assert images.train.class_names == ("a", "b")
    assert images.notes[0] == "split 'train': left out .csv files beside the class folders: 1, such as metadata.csv"
