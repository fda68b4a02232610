"""Class folders: every image and nothing else, in a fixed order, and errors."""

from __future__ import annotations

import os
import re
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_sets import level_of, load, png, section, write

from cskd_hf.data import class_folders
from cskd_hf.data.splits import ImageSplit, load_split
from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


def file_and_class(split: ImageSplit) -> list[tuple[str, str]]:
    """(file, class) of every image of a split of files."""
    files = [os.path.basename(image["path"]) for image in split.fetch(range(len(split)))]
    return sorted(zip(files, (split.class_names[label] for label in split.labels), strict=True))


def test_class_folders_contribute_every_image_and_nothing_else(tmp_path):
    files = [
        "train/robin/plain.jpg",
        "train/robin/with space.jpeg",
        "train/robin/rødhals 知更鳥.png",
        "train/robin/[a] (1) {x}*?.jpg",
        "train/robin/100%#2::3.jpg",
        "train/robin/UPPER.JPG",
        "train/robin/Mixed.JpEg",
        "train/robin/two.dots.webp",
        "train/robin/nested/deeper/below.bmp",
        "train/European robin #1/a.tiff",
        "test/robin/b.jpg",
    ]
    others = [
        "train/robin/.hidden.jpg",
        "train/robin/._plain.jpg",
        "train/robin/.ipynb_checkpoints/plain-checkpoint.jpg",
        "train/robin/nested/.git/object.jpg",
        "train/robin/Thumbs.db",
        "train/robin/.DS_Store",
        "train/robin/notes.txt",
        "train/robin/labels.csv",
        "train/robin/jpg",
        "train/.cache/a.jpg",
        "train/loose.jpg",
        "README.md",
        "beside the splits.JPG",
        "unused/robin/c.jpg",
    ]
    write(tmp_path, *files, *others)
    (tmp_path / "train/robin/linked.jpg").symlink_to(tmp_path / "unused/robin/c.jpg")
    (tmp_path / "train/linked class").symlink_to(tmp_path / "unused/robin", target_is_directory=True)
    (tmp_path / "train/robin/linked folder").symlink_to(tmp_path / "unused/robin", target_is_directory=True)
    images = load(tmp_path)
    expected = [(Path(file).name, Path(file).parts[1]) for file in files if file.startswith("train")]
    expected += [("linked.jpg", "robin"), ("c.jpg", "linked class"), ("c.jpg", "robin")]
    assert file_and_class(images.train) == sorted(expected)
    assert file_and_class(images.test) == [("b.jpg", "robin")]
    assert images.train.class_names == ("European robin #1", "linked class", "robin")
    left_out = {
        "hidden files: 2 (2 in robin)",
        "macOS ._ files: 1 (1 in robin)",
        "hidden folders: 3 (2 in robin)",
        ".db files: 1 (1 in robin)",
        ".txt files: 1 (1 in robin)",
        ".csv files: 1 (1 in robin)",
        "files without extension: 1 (1 in robin)",
        "images beside the class folders: 1",
    }
    note = re.sub(", such as [^;]*", "", images.notes[0])
    assert set(note.removeprefix("split 'train': left out ").split("; ")) == left_out
    nested = "images in nested folders, of the outermost folder's class: 2 (2 in robin)"
    assert images.notes[1] == f"split 'train': {nested}"
    assert images.notes[2] == "left out images beside the folders of the splits: 1"
    assert load_split(section(tmp_path, test_split="train"), None).notes == images.notes[:3]


def test_odd_file_names_are_read(tmp_path):
    names = ["with space.png", "知更鳥.png", "[a] (1)*?.png", "100%#2::3.png"]
    for level, name in enumerate(names):
        write(tmp_path, f"train/a/{name}", f"test/a/{name}", content=png(level))
    write(tmp_path, "train/b/1.png")
    train = load(tmp_path).train
    assert sorted(level_of(train, index) for index in range(len(names))) == list(range(len(names)))
    assert "知更鳥.png" in " ".join(train.describe(index) for index in range(len(names)))


def test_words_in_file_names_do_not_move_images_between_splits(tmp_path):
    """`datasets`' imagefolder trains and tests on `train/robin/test_1.jpg`."""
    write(tmp_path, "train/robin/test_1.jpg", "train/wren/validation.jpg", "test/robin/train-2.jpg", "test/wren/x.jpg")
    images = load(tmp_path)
    assert file_and_class(images.train) == [("test_1.jpg", "robin"), ("validation.jpg", "wren")]
    assert file_and_class(images.test) == [("train-2.jpg", "robin"), ("x.jpg", "wren")]


def test_all_splits_share_one_list_of_classes(tmp_path):
    write(tmp_path, "train/b/1.jpg", "train/d/2.jpg", "test/B/3.jpg", "test/b/4.jpg", "test/d/5.jpg")
    images = load(tmp_path)
    assert images.train.class_names == images.test.class_names == ("B", "b", "d")
    assert images.num_classes == 3
    assert images.train.labels.tolist() == [1, 2]
    assert images.test.labels.tolist() == [0, 1, 2]
    alike, missing, *_ = images.notes
    assert alike.startswith("classes 'B' and 'b' differ only in case, ")
    assert missing == "1 of 3 classes have no training image: B"


def test_the_order_of_rows_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    write(tmp_path, *(f"{split}/{name}/{file}.jpg" for split in ("train", "test") for name in "ba" for file in "312"))
    write(tmp_path, "train/a/z/1.jpg", "train/a/y/1.jpg")
    in_order = ["a/1", "a/2", "a/3", "a/y/1", "a/z/1", "b/1", "b/2", "b/3"]
    expected = [str(tmp_path / f"train/{name}.jpg") for name in in_order]
    assert [image["path"] for image in load(tmp_path).train.fetch(range(8))] == expected

    @contextmanager
    def backwards(path):
        yield sorted(os.scandir(path), key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr(class_folders, "os", SimpleNamespace(**{**vars(os), "scandir": backwards}))
    assert [image["path"] for image in load(tmp_path).train.fetch(range(8))] == expected


def test_a_missing_split_folder_lists_the_existing_ones(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", ".git/x")
    with pytest.raises(
        UserError, match=r"data: .* has no split 'test'; it has train, val; write data\.test_split=val$"
    ):
        load(tmp_path)
    assert len(load(tmp_path, test_split="val").test) == 1


def test_a_split_folder_without_images_shows_the_layout(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/1.jpg", "test/a/notes.txt")
    with pytest.raises(
        UserError, match=r"data\.dataset: .*test has no images; put them in .*test/class/\*\.jpg; .*\.txt files: 1"
    ):
        load(tmp_path)


def test_an_empty_folder_and_a_file_are_rejected(tmp_path):
    with pytest.raises(
        UserError,
        match=r"data\.dataset: .* has no images that can be read; they lie in split/class/\*\.jpg or class/\*\.jpg",
    ):
        load(tmp_path)
    write(tmp_path, "archive.zip")
    with pytest.raises(UserError, match=r"data\.dataset: .*archive\.zip is a file; extract the images, and write"):
        load(tmp_path / "archive.zip")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar"])
def test_images_in_archives_are_to_be_extracted(tmp_path, suffix):
    write(tmp_path, "birds/a/1.jpg", "birds/b/1.jpg")
    shutil.make_archive(str(tmp_path / "packed" / "train"), {"tar.gz": "gztar"}.get(suffix, suffix), tmp_path / "birds")
    with pytest.raises(UserError, match="extract") as error:
        load(tmp_path / "packed", test_split=0.5)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems reject such a name")
def test_a_file_name_that_is_not_utf8_is_named(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg")
    with open(os.fsencode(tmp_path) + b"/train/a/\xe9t\xe9.jpg", "wb"):
        pass
    with pytest.raises(UserError, match=r"data\.dataset: the file name .*xe9t.* is not UTF-8; rename it"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ("train/a/1.jpg", "test/a/1.jpg"),
            "data.dataset: only one class to train on, a; add another, or change data.label_column$",
        ),
        (
            ("train/a/1.jpg", "test/b/1.jpg"),
            "data.dataset: only one class to train on, a; add another, or change data.label_column$",
        ),
        (
            ("train/0.0/1.jpg", "train/1.0/1.jpg", "test/0/1.jpg", "test/1/1.jpg"),
            "data: split 'test' has none of the classes that are trained, 0.0, 1.0, only 0, 1; correct its labels",
        ),
        (
            ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "val/c/1.jpg"),
            "data: split 'val' has none of the classes that are trained, a, b, only c; ",
        ),
    ],
)
def test_splits_without_common_classes_are_an_error(tmp_path, paths, message):
    write(tmp_path, *paths)
    with pytest.raises(UserError, match=f"^{message}"):
        load(tmp_path, holdout="val" if "val/c/1.jpg" in paths else 0.0)


def test_a_class_folder_of_other_files_is_an_error_and_an_empty_one_is_ignored(tmp_path):
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/b/1.jpg")
    (tmp_path / "train" / "c").mkdir()
    assert load(tmp_path).train.class_names == ("a", "b")
    (tmp_path / "train" / "c" / "photo.nef").write_bytes(b"an image that Pillow does not read")
    (tmp_path / "train" / "c" / "0001").write_bytes(b"an image without an extension")
    with pytest.raises(UserError, match=r"/train/c has no image that can be read, but \.nef files: 1; files") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
