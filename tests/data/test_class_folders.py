"""What is left out of class folders, and how classes are numbered."""

from __future__ import annotations

import io
import os
import socket
from pathlib import Path

import pytest
from PIL import Image as PillowImage
from small_sets import level_of, load, section, write

from cskd_hf.data.splits import load_split

pytestmark = pytest.mark.usefixtures("own_cache")


def test_what_is_no_image_file_is_counted_and_never_opened(tmp_path):
    write(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/1.png", "train/b/2.png", "test/a/1.png", "test/b/1.png")
    write(tmp_path, "train/a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "train/@eaDir/x.jpg", "train/__MACOSX/a/._1.png")
    write(tmp_path, "train/b/photo.jpg/3.png", "train/c/.DS_Store")
    folder = tmp_path / "train" / "b"
    os.mkfifo(folder / "pipe.png")  # opening one would wait for ever
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
        (folder / "device.png").symlink_to("/dev/zero")
        (folder / "gone.png").symlink_to("nowhere.png")
        (folder / "itself.png").symlink_to("itself.png")
        (folder / "up").symlink_to("../../train", target_is_directory=True)
        images = load(tmp_path)
    names = [os.path.basename(image["path"]) for image in images.train.fetch(range(5))]
    assert names == ["1.png", "2.png", "1.png", "2.png", "3.png"]
    assert images.train.labels.tolist() == [0, 0, 1, 1, 1]
    note, nested, *others = images.notes
    assert others == []
    assert nested.endswith(": 1 (1 in b)")
    assert set(note.removeprefix("split 'train': left out ").split("; ")) == {
        "@eaDir folders: 2 (1 in a), such as @eaDir, a/@eaDir",
        "__MACOSX folders: 1, such as __MACOSX",
        "pipes, sockets and devices: 3 (3 in b), such as b/device.png, b/pipe.png, b/socket.png",
        "broken links: 2 (2 in b), such as b/gone.png, b/itself.png",
        "links to a folder that they are in: 1 (1 in b), such as b/up",
        "hidden files: 1 (1 in c), such as c/.DS_Store",
        "class folders without images: 1 (1 in c), such as c",
    }


def test_photographs_that_no_installed_decoder_reads_are_left_out_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr("cskd_hf.data.class_folders.readable_extensions", lambda: {".png"})
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in "ab"))
    write(tmp_path, "train/a/1.HEIC", "train/a/2.heic", "train/b/3.heic", "test/a/1.avif")
    notes = load(tmp_path).notes
    assert notes[:2] == (
        "split 'train': left out .heic files, readable after pip install pillow-heif: 3 (2 in a, 1 in b), such as "
        "a/1.HEIC, a/2.heic, b/3.heic",
        "split 'test': left out .avif files, readable after pip install -U pillow: 1 (1 in a), such as a/1.avif",
    )


@pytest.mark.parametrize("extension", [".avif", ".heic"])
def test_avif_and_heic_are_read_with_the_decoders_of_the_dev_extra(tmp_path, extension):
    buffer = io.BytesIO()
    PillowImage.new("RGB", (16, 16), (200, 200, 200)).save(buffer, "AVIF" if extension == ".avif" else "HEIF")
    write(tmp_path, *(f"{split}/{name}/1{extension.upper()}" for split in ("train", "test") for name in "ab"))
    write(tmp_path, f"train/a/1{extension.upper()}", content=buffer.getvalue())
    assert level_of(load(tmp_path).train, 0) == pytest.approx(200, abs=3)


def test_class_folders_are_numbered_as_timm_numbers_them(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("10", "9", "B", "a", "1")))
    assert load(tmp_path).train.class_names == ("1", "9", "10", "a", "B")


def test_weights_of_an_earlier_class_order_are_evaluated_by_name(tmp_path):
    write(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("1", "2", "10")))
    earlier = ("1", "10", "2")
    split = load_split(section(tmp_path), earlier)
    assert split.class_names == earlier
    assert [Path(image["path"]).parent.name for image in split.fetch(range(3))] == ["1", "10", "2"]
    assert split.labels.tolist() == [0, 1, 2]
