"""The fingerprint of a run's images: every change of the data is seen, and nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_sets import LAYOUTS, as_parquet, load, table, write

from cskd_hf.data import fingerprint
from cskd_hf.data.fingerprint import describe_images, image_differences


def image(number: int) -> bytes:
    """Any bytes will do: no image is decoded."""
    return f"image {number:4d}".encode()


def class_folders(root: Path) -> Path:
    for split, first in (("train", 0), ("test", 100)):
        for number in range(8):
            file = root / split / "ab"[number % 2] / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image(first + number))
    return root


def keep_times(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """A change after which every file has the size and the modification time that it had."""

    def changed(root: Path) -> None:
        before = {file: file.stat() for file in root.rglob("*.*")}
        change(root)
        for file, stat in before.items():
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            assert file.stat().st_size == stat.st_size

    return changed


def swap(one: Path, other: Path) -> None:
    content = one.read_bytes(), other.read_bytes()
    other.write_bytes(content[0])
    one.write_bytes(content[1])


def differences(root: Path, change: Callable[[Path], object], **keys: object) -> str:
    """What differs after a change, without the counts."""
    before = describe_images(load(root, **keys))
    change(root)
    lines = image_differences(before, describe_images(load(root, **keys)))
    return "; ".join(f"{line.split()[0]}: {line.partition('what differs: ')[2]}" for line in lines)


CHANGES = {
    "swapped images of a class": (
        keep_times(lambda root: swap(root / "train/a/0.png", root / "train/a/2.png")),
        "train: the bytes of images",
    ),
    "another test image": (
        keep_times(lambda root: (root / "test/b/3.png").write_bytes(image(77))),
        "test: the bytes of images",
    ),
    "an image more": (
        lambda root: (root / "train/b/9.png").write_bytes(image(9)),
        "train: the number of images, the rows that belong to it, labels, file names or sizes, the bytes of images",
    ),
    "an image moved to another class": (
        lambda root: (root / "train/a/6.png").rename(root / "train/b/6.png"),
        "train: labels, file names or sizes, the bytes of images",
    ),
    "a renamed class": (
        lambda root: [(root / split / "a").rename(root / split / "A") for split in ("train", "test")],
        "train: class names or their order, file names or sizes; test: class names or their order, file names or sizes",
    ),
    "a larger file": (
        lambda root: (root / "test/a/0.png").write_bytes(image(100) + b"more"),
        "test: file names or sizes, the bytes of images",
    ),
}


@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_of_class_folders_is_named(tmp_path, change, expected):
    assert differences(class_folders(tmp_path), change) == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_replaced_in_place_is_read_anew_and_named(tmp_path, layout):
    """`datasets` would serve a prepared copy of the old Parquet file, which has the same size and time."""

    def write(root: Path, levels: list[int]) -> None:
        images = [{"bytes": image(level), "path": None} for level in levels]
        layout(root, train=table([0, 1, 0, 1], images=images), test=table([0, 1]))

    def replace(root: Path) -> None:
        swapped = tmp_path / "new"
        write(swapped, [2, 1, 0, 3])
        for file in root.rglob("*.*"):
            file.write_bytes((swapped / file.relative_to(root)).read_bytes())

    write(tmp_path / "set", [0, 1, 2, 3])
    assert differences(tmp_path / "set", keep_times(replace) if layout is as_parquet else replace) == (
        "train: the bytes of images"
    )


def test_touched_and_moved_files_are_the_same_images(tmp_path):
    root = class_folders(tmp_path / "here")
    before = describe_images(load(root, holdout=0.25))
    for file in root.rglob("*.png"):
        os.utime(file, ns=(0, 0))
    moved = shutil.copytree(root, tmp_path / "far" / "away")
    assert image_differences(before, describe_images(load(moved, holdout=0.25))) == []


def test_another_share_of_the_same_rows_is_named(tmp_path, monkeypatch):
    """As a later version might cut the hold-out set."""

    def change(_: Path) -> None:
        monkeypatch.setattr("cskd_hf.data.splits.holdout_mask", lambda labels, share: np.arange(len(labels)) >= 6)

    named = differences(class_folders(tmp_path), change, holdout=0.25)
    assert named.startswith("train: the rows that belong to it, ")
    assert "holdout: the rows that belong to it, " in named


@pytest.mark.parametrize(("max_images", "max_bytes"), [(3, 1 << 20), (100, 3 * len(image(0)) + 5)])
def test_of_many_images_evenly_spaced_ones_are_read(tmp_path, monkeypatch, max_images, max_bytes):
    monkeypatch.setattr(fingerprint, "MAX_IMAGES", max_images)
    monkeypatch.setattr(fingerprint, "MAX_BYTES", max_bytes)
    root = class_folders(tmp_path)  # rows 0, 3 and 7 are a/0.png, a/6.png and b/7.png
    assert differences(root, lambda root: (root / "train/a/2.png").write_bytes(image(9))) == ""
    assert (
        differences(root, lambda root: (root / "train/b/7.png").write_bytes(image(9))) == "train: the bytes of images"
    )


def test_a_row_without_image_is_left_to_the_decoder(tmp_path):
    root = class_folders(tmp_path / "images")
    for split in ("train", "test"):
        rows = [f"{file},{file.parent.name}" for file in sorted((root / split).rglob("*.png"))]
        (tmp_path / f"{split}.csv").write_text("\n".join(["image,label", *rows, ",a"]))
    assert describe_images(load(tmp_path))["train"]["images"] == 9


def test_an_unreadable_file_is_left_to_the_decoder(tmp_path):
    root = class_folders(tmp_path)
    images = load(root)
    (root / "train/a/0.png").unlink()
    describe_images(images)


def test_a_table_in_which_paths_are_written_in_another_way_counts_alike(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d", "0.png", "1.png")
    described = []
    for second in ("1.png", "./1.png", ".//./1.png", tmp_path / "d" / "1.png"):
        for split in ("train", "test"):
            (tmp_path / "d" / f"{split}.csv").write_text(f"image,label\n0.png,a\n{second},b\n")
        described.append(describe_images(load("d")))
    monkeypatch.chdir("d")
    described.append(describe_images(load(".")))
    assert all(each == described[0] for each in described)
