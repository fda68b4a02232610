"""Rejected lists: missing lists or images, contradictions, other counts than the official ones."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from originals import ORIGINALS, Original, downloaded, mat, picture, unpacked
from preparations import assert_prepared, changed, members_of, prepare, rejection

from cskd_hf.errors import UserError

LISTS = {
    "cub200": ["images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"],
    "stanford_dogs": ["train_list.mat", "test_list.mat"],
    "mit67": ["TrainImages.txt", "TestImages.txt"],
    "tiny_imagenet": ["wnids.txt", "words.txt", "val_annotations.txt"],
    "imagenet": ["meta.mat", "ILSVRC2012_validation_ground_truth.txt"],
}


@pytest.mark.parametrize(("name", "missing"), [(name, file) for name, files in LISTS.items() for file in files])
def test_a_missing_list_is_named(tmp_path, name, missing):
    root = tmp_path / "in"
    for members in ORIGINALS[name]().files.values():
        unpacked(root, members)
    (next(root.rglob(missing))).unlink()
    assert f"found no {missing}; expected " in rejection(name, root, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("cub200", "Laysan_Albatross", "CUB_200_2011/images.txt, line 5 names 002.Laysan_Albatross/Laysan_Albatross_"),
        ("stanford_dogs", "Samoyed", "train_list.mat, row 3 names n02111889-Samoyed/n02111889_9998.jpg"),
        ("mit67", "church_inside", "TrainImages.txt, line 4 names church_inside/4 church.jpg"),
        ("tiny_imagenet", "val/images/val_10.", "val_annotations.txt, line 2 names val_10.JPEG"),
        ("imagenet", "val_00000004", "6 lines, {} 5 images; only one of them has ILSVRC2012_val_00000004.JPEG"),
    ],
)
def test_a_listed_image_that_the_archive_lacks_is_named(tmp_path, name, image, reason):
    def remove(original: Original) -> None:
        for members in original.files.values():
            for member in [member for member in members if image in member]:
                del members[member]

    archives = changed(name, remove, tmp_path / "in")
    message = rejection(name, *archives, tmp_path / "out")
    assert reason.format(archives[1 if name == "imagenet" else 0]) in message
    assert ("(3 more like it)" in message) == (name in ("cub200", "stanford_dogs", "mit67"))


def rewrite(member: str, old: bytes, new: bytes) -> Callable[[Original], None]:
    def change(original: Original) -> None:
        for members in original.files.values():
            if member in members:
                assert old in members[member]
                members[member] = members[member].replace(old, new)

    return change


CUB, TINY, DEVKIT = "CUB_200_2011", "tiny-imagenet-200", "ILSVRC2012_devkit_t12/data"


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("cub200", rewrite(f"{CUB}/image_class_labels.txt", b"\n7 2\n", b"\n7 4\n"), "line 7: image 7 has class 4"),
        ("cub200", rewrite(f"{CUB}/train_test_split.txt", b"\n7 1\n", b"\n"), "line 7: image 7 has .* split None"),
        ("cub200", rewrite(f"{CUB}/classes.txt", b"2 002", b"2-002"), r"classes.txt, line 2: expected two columns"),
        ("mit67", rewrite("TestImages.txt", b"airport_inside/", b""), r"TestImages.txt, line 3: expected class/file"),
        ("tiny_imagenet", rewrite(f"{TINY}/wnids.txt", b"n01629819", b""), "n01629819.* its class is not in .*wnids"),
        (
            "tiny_imagenet",
            rewrite(f"{TINY}/val/val_annotations.txt", b"n01443537", b"n00000001"),
            "val_annotations.txt, line 3: val_0.JPEG has class n00000001, which is not in .*wnids.txt",
        ),
        (
            "imagenet",
            rewrite(f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt", b"5", b"6"),
            "ground_truth.txt, line 4: '6' is not the ILSVRC2012_ID of a class",
        ),
    ],
)
def test_contradictions_between_lists_are_named_with_their_line(tmp_path, name, change, reason):
    message = rejection(name, *changed(name, change, tmp_path / "in"), tmp_path / "out")
    assert re.search(reason, message), message


@pytest.mark.parametrize("name", ["cub200", "tiny_imagenet"])
def test_lists_may_begin_with_a_byte_order_mark(tmp_path, name):
    def mark(original: Original) -> None:
        for members in original.files.values():
            members |= {file: b"\xef\xbb\xbf" + text for file, text in members.items() if file.endswith(".txt")}

    assert prepare(name, *changed(name, mark, tmp_path / "in"), tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", ORIGINALS[name]())


def test_malformed_mat_files_are_named(tmp_path):
    def other(original: Original) -> None:
        original.files["lists.tar"]["train_list.mat"] = mat(labels=np.ones((3, 1)))

    def garbage(original: Original) -> None:
        original.files["ILSVRC2012_devkit_t12.tar.gz"][f"{DEVKIT}/meta.mat"] = b"no mat at all"

    def two_names(original: Original) -> None:
        column = np.empty((2, 1), dtype=object)
        column[:, 0] = [f"{original.class_names[k]}/{k}.jpg" for k in range(2)]
        original.files["lists.tar"]["train_list.mat"] = mat(file_list=column, labels=np.ones((2, 1)))
        members_of(original).update({f"Images/{column[k, 0]}": picture(k) for k in range(2)})

    dogs = changed("stanford_dogs", other, tmp_path / "dogs")
    assert "train_list.mat: expected file_list and labels" in rejection("stanford_dogs", *dogs, tmp_path / "out")
    dogs = changed("stanford_dogs", two_names, tmp_path / "two")
    assert "has label 1, the label of n02085782" in rejection("stanford_dogs", *dogs, tmp_path / "out")
    imagenet = changed("imagenet", garbage, tmp_path / "imagenet")
    assert "meta.mat: no list of synsets" in rejection("imagenet", *imagenet, tmp_path / "out")


def test_classes_missing_from_the_devkit_or_the_images_are_named(tmp_path):
    archives = changed("imagenet", lambda original: members_of(original).pop("n02106166.tar"), tmp_path / "in")
    message = rejection("imagenet", *archives, tmp_path / "out")
    assert "has 4 classes, the devkit 5; only one of them has n02106166" in message


# counts


@pytest.mark.parametrize("name", ORIGINALS)
def test_other_counts_than_the_official_ones_are_rejected_unless_allowed(tmp_path, name):
    archives = downloaded(tmp_path / "in", name)
    message = rejection(name, *archives, tmp_path / "out", any_counts=False)
    original = ORIGINALS[name]()
    assert message.startswith(f"{name}: found {len(original.class_names)} classes instead of ")
    for split, rows in original.rows.items():
        assert f"{len(rows)} {split} images instead of " in message or (name, split) == ("imagenet", "train")
    assert "--allow-other-counts" in message


def test_imagenets_training_images_are_counted_while_they_are_read(tmp_path, monkeypatch):
    import preparation

    official = preparation.CATALOG["imagenet"]
    facts = {"num_classes": 5, "num_images": {"train": 21, "validation": 6}}
    changed_entry = type(official)(**{**vars(official), **facts})
    monkeypatch.setitem(preparation.CATALOG, "imagenet", changed_entry)
    archives = downloaded(tmp_path / "in", "imagenet")
    with pytest.raises(UserError, match=r"^imagenet: found 20 train images instead of 21; "):
        prepare("imagenet", *archives, tmp_path / "out", any_counts=False)
    assert not (tmp_path / "out" / "dataset_dict.json").exists()
    assert prepare("imagenet", *archives, tmp_path / "out") == 0
