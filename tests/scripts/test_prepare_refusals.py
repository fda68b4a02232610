from __future__ import annotations

import collections
import fcntl
import gzip
import importlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts.originals import ORIGINALS, PACKERS, Original, mat, packed, picture, tar, unpacked, usual, zipped

from cskd_hf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def prepare(name: str, *arguments: Any, any_counts: bool = True) -> int:
    options = ["--allow-other-counts"] if any_counts else []
    return importlib.import_module(f"prepare_{name}").main([*map(str, arguments), *options])


def refusal(name: str, *arguments: Any, any_counts: bool = True, begun: bool = False) -> str:
    """The one line a preparation is refused with; it leaves nothing where there was nothing.

    Args:
        begun: images were being written; those shards that are whole are kept for the next run.
    """
    out = Path(arguments[-1])
    before = sorted(out.rglob("*")) if out.is_dir() else out.exists()
    with pytest.raises(UserError) as caught:
        prepare(name, *arguments, any_counts=any_counts)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    if begun and out.exists():
        assert [path.name for path in out.iterdir()] == [".partial"]
        assert not [path for path in out.rglob("*") if path.suffix == ".tmp" or path.name.startswith("spool")]
    else:
        assert (sorted(out.rglob("*")) if out.is_dir() else out.exists()) == before
    return message


def changed(name: str, change: Callable[[Original], Any], root: Path, kind: str = "tar") -> list[Path]:
    original = ORIGINALS[name]()
    change(original)
    return packed(root, original, kind)


def members_of(original: Original) -> dict[str, bytes]:
    """Of the archive of the images."""
    return next(iter(original.files.values()))


# the wrong archive


@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("other", ORIGINALS)
def test_the_archive_of_another_set_is_refused_with_what_was_expected_and_what_was_found(tmp_path, name, other):
    if name == other:
        return
    archives = usual(tmp_path / "in", other)
    message = refusal(name, *archives, tmp_path / "out")
    found, expected = message.split("; expected ")
    assert found.startswith("found no ")
    assert next(iter(ORIGINALS[name]().files)) in expected
    assert next(iter(members_of(ORIGINALS[other]()))) in expected


def test_a_refusal_is_one_line_and_exit_status_2(tmp_path):
    archive, _ = usual(tmp_path / "in", "stanford_dogs")
    arguments = [sys.executable, ROOT / "scripts/prepare_cub200.py", archive, tmp_path / "out"]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: found no images.txt, image_class_labels.txt,")
    assert done.stderr.count("\n") == 1


def test_what_is_neither_archive_nor_folder_is_refused(tmp_path):
    assert "No such file" in refusal("cub200", tmp_path / "none.tgz", tmp_path / "out")
    for content in (b"", b"<html>not found</html>", bytes(2000)):
        (tmp_path / "CUB_200_2011.tgz").write_bytes(content)
        assert "holds CUB_200_2011.tgz" in refusal("cub200", tmp_path / "CUB_200_2011.tgz", tmp_path / "out")
    unpacked(tmp_path / "empty", {".cache/images.txt": b"1 a/a.jpg"})
    assert "holds nothing" in refusal("cub200", tmp_path / "empty", tmp_path / "out")


def test_imagenets_archives_are_all_needed(tmp_path):
    train, val, devkit = usual(tmp_path / "in", "imagenet")
    assert "found no ILSVRC2012_val_00000001.JPEG" in refusal("imagenet", train, devkit, tmp_path / "out")
    assert "found no meta.mat" in refusal("imagenet", train, val, tmp_path / "out")
    assert "found no n01440764.tar" in refusal("imagenet", val, devkit, tmp_path / "out")


# broken archives


def stored(members: dict[str, bytes]) -> bytes:
    return zipped(members, zipfile.ZIP_STORED)


def test_a_truncated_tar_or_zip_is_refused_with_the_member_it_ends_in(tmp_path):
    members = members_of(ORIGINALS["cub200"]())
    for pack in (tar, stored):
        content = pack(members)
        for name, data in members.items():
            if data != b"mask":  # many members' content
                (tmp_path / "a").write_bytes(content[: content.index(data) + len(data) // 2])
                said = f"ends inside {'or after ' if pack is stored else ''}{name}"
                assert said in refusal("cub200", tmp_path / "a", tmp_path / "out")
    for cut in range(0, len(content), 997):
        (tmp_path / "a").write_bytes(content[:cut])
        assert re.search("truncated|found no images.txt", refusal("cub200", tmp_path / "a", tmp_path / "out"))


@pytest.mark.parametrize("kind", ["tgz", "tar.bz2"])
def test_a_truncated_compressed_tar_is_refused(tmp_path, kind):
    members = members_of(ORIGINALS["cub200"]())
    content = PACKERS[kind](members)
    for cut in range(5, len(content), 997):
        (tmp_path / "a").write_bytes(content[:cut])
        message = refusal("cub200", tmp_path / "a", tmp_path / "out")
        assert "is truncated" in message
        assert "the compressed stream has no end" in message
    if kind == "tgz":  # a bzip2 block, 900 kB, cannot be read in part
        assert any(name in message for name in members), message


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_a_tar_that_ends_between_two_members_is_truncated_too(tmp_path, kind):
    with tarfile.open(fileobj=io.BytesIO(tar(members_of(ORIGINALS["cub200"]())))) as opened:
        infos = opened.getmembers()
    content = tar(members_of(ORIGINALS["cub200"]()))[: infos[-1].offset]
    if kind == "tgz":
        content = gzip.compress(content)
    (tmp_path / "a").write_bytes(content)
    message = refusal("cub200", tmp_path / "a", tmp_path / "out")
    assert f"truncated or damaged after {infos[-2].name}" in message


def test_a_gzip_that_lacks_only_its_checksum_is_truncated_too(tmp_path):
    content = PACKERS["tgz"](members_of(ORIGINALS["cub200"]()))
    (tmp_path / "a.tgz").write_bytes(content[:-6])
    assert "truncated or damaged at its end" in refusal("cub200", tmp_path / "a.tgz", tmp_path / "out")
    (tmp_path / "a.tgz").write_bytes(content[:-8] + bytes(8))
    message = refusal("cub200", tmp_path / "a.tgz", tmp_path / "out")
    assert "truncated or damaged" in message
    assert "incorrect data check" in message


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_image_in_a_zip_is_named(tmp_path, method):
    original = ORIGINALS["tiny_imagenet"]()
    content = zipped(members_of(original), method)
    (tmp_path / "a.zip").write_bytes(content)
    name = "tiny-imagenet-200/train/n02124075/images/n02124075_7.JPEG"
    with zipfile.ZipFile(tmp_path / "a.zip") as opened:
        middle = opened.getinfo(name).header_offset + 30 + len(name) + opened.getinfo(name).compress_size // 2
    (tmp_path / "a.zip").write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    message = refusal("tiny_imagenet", tmp_path / "a.zip", tmp_path / "out", begun=True)
    assert "damaged" in message
    assert name in message


def test_a_broken_class_archive_inside_imagenets_is_named_with_its_member(tmp_path):
    def cut(original: Original) -> None:
        members_of(original)["n02085620.tar"] = members_of(original)["n02085620.tar"][:1200]

    message = refusal(
        "imagenet", *changed("imagenet", cut, tmp_path / "in"), "--workers=1", tmp_path / "out", begun=True
    )
    assert "ILSVRC2012_img_train.tar: n02085620.tar is truncated: it ends inside n02085620_" in message


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip", "folder"])
def test_an_image_of_no_bytes_is_named(tmp_path, kind):
    def empty(original: Original) -> None:
        members_of(original)["Images/warehouse/Wäre_1.jpg"] = b""

    archives = changed("mit67", empty, tmp_path / "in", kind)
    message = refusal("mit67", *archives, tmp_path / "out", begun=True)
    assert "Images/warehouse/Wäre_1.jpg is empty" in message


# unsafe archives


def special(name: str, kind: bytes = tarfile.REGTYPE, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


UNSAFE = {
    "absolute": (special("/tmp/evil.jpg"), "'/tmp/evil.jpg' is an absolute path"),
    "drive": (special("C:\\evil.jpg"), "is an absolute path"),
    "above": (special("CUB_200_2011/../../evil.jpg"), "'CUB_200_2011/../../evil.jpg' is a path that leaves"),
    "backslashes": (special("images\\..\\..\\evil.jpg"), "is a path that leaves"),
    "symlink": (special("evil.jpg", tarfile.SYMTYPE, "/etc/passwd"), "'evil.jpg' is a link"),
    "hardlink": (special("evil.jpg", tarfile.LNKTYPE, "/etc/passwd"), "'evil.jpg' is a link"),
    "device": (special("evil.jpg", tarfile.CHRTYPE), "'evil.jpg' is a device"),
    "pipe": (special("evil.jpg", tarfile.FIFOTYPE), "'evil.jpg' is a device"),
    "unknown": (special("evil.jpg", b"V"), "'evil.jpg' is no plain file"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_a_tar_with_an_unsafe_member_is_refused_by_its_name(tmp_path, kind):
    member, said = UNSAFE[kind]
    plain = [(tarfile.TarInfo(name), content) for name, content in members_of(ORIGINALS["cub200"]()).items()]
    for mode in ("w", "w:gz"):
        (tmp_path / "a").write_bytes(tar([*plain[:5], (member, b""), *plain[5:]], mode))
        message = refusal("cub200", tmp_path / "a", tmp_path / "out")
        assert message.startswith(f"{tmp_path / 'a'} is not safe: its member ")
        assert said in message


@pytest.mark.parametrize("kind", ["absolute", "above", "symlink", "hardlink"])
def test_an_unsafe_member_of_a_class_archive_is_refused_too(tmp_path, kind):
    member, said = UNSAFE[kind]

    def insert(original: Original) -> None:
        members_of(original)["n02085620.tar"] = tar([(member, b""), (tarfile.TarInfo("a.JPEG"), b"a")])

    message = refusal(
        "imagenet", *changed("imagenet", insert, tmp_path / "in"), "--workers=1", tmp_path / "out", begun=True
    )
    assert "n02085620.tar is not safe" in message
    assert said in message


@pytest.mark.parametrize(
    ("name", "mode", "said"),
    [
        ("/tmp/evil.jpg", 0, "is an absolute path"),
        ("a/../../evil.jpg", 0o100644, "is a path that leaves"),
        ("a\\..\\..\\evil.jpg", 0, "is a path that leaves"),
        ("evil.jpg", 0o120777, "'evil.jpg' is a link"),
        ("evil.jpg", 0o020644, "'evil.jpg' is a device"),
    ],
)
def test_a_zip_with_an_unsafe_member_is_refused_by_its_name(tmp_path, name, mode, said):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr = name, mode << 16
        archive.writestr(info, b"evil")
        for member, content in members_of(ORIGINALS["tiny_imagenet"]()).items():
            archive.writestr(member, content)
    message = refusal("tiny_imagenet", tmp_path / "a.zip", tmp_path / "out")
    assert "is not safe: its member " in message
    assert said in message


# lists


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
    assert f"found no {missing}; expected " in refusal(name, root, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "image", "said"),
    [
        ("cub200", "Laysan_Albatross", "CUB_200_2011/images.txt, line 5 names 002.Laysan_Albatross/Laysan_Albatross_"),
        ("stanford_dogs", "Samoyed", "train_list.mat, row 3 names n02111889-Samoyed/n02111889_9998.jpg"),
        ("mit67", "church_inside", "TrainImages.txt, line 4 names church_inside/4 church.jpg"),
        ("tiny_imagenet", "val/images/val_10.", "val_annotations.txt, line 2 names val_10.JPEG"),
        ("imagenet", "val_00000004", "6 lines, {} 5 images; only one of them has ILSVRC2012_val_00000004.JPEG"),
    ],
)
def test_an_image_that_a_list_names_and_the_archive_lacks_is_named(tmp_path, name, image, said):
    def remove(original: Original) -> None:
        for members in original.files.values():
            for member in [member for member in members if image in member]:
                del members[member]

    archives = changed(name, remove, tmp_path / "in")
    message = refusal(name, *archives, tmp_path / "out")
    assert said.format(archives[1 if name == "imagenet" else 0]) in message
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
    ("name", "change", "said"),
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
def test_lists_that_contradict_each_other_are_refused_with_the_line(tmp_path, name, change, said):
    message = refusal(name, *changed(name, change, tmp_path / "in"), tmp_path / "out")
    assert re.search(said, message), message


def test_mat_files_that_are_not_what_they_should_be_are_named(tmp_path):
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
    assert "train_list.mat: expected file_list and labels" in refusal("stanford_dogs", *dogs, tmp_path / "out")
    dogs = changed("stanford_dogs", two_names, tmp_path / "two")
    assert "has label 1, which is that of n02085782" in refusal("stanford_dogs", *dogs, tmp_path / "out")
    imagenet = changed("imagenet", garbage, tmp_path / "imagenet")
    assert "meta.mat: no list of synsets" in refusal("imagenet", *imagenet, tmp_path / "out")


def test_classes_that_only_the_devkit_or_the_images_have_are_named(tmp_path):
    archives = changed("imagenet", lambda original: members_of(original).pop("n02106166.tar"), tmp_path / "in")
    message = refusal("imagenet", *archives, tmp_path / "out")
    assert "has 4 classes, the devkit 5; only one of them has n02106166" in message


# counts


@pytest.mark.parametrize("name", ORIGINALS)
def test_other_counts_than_the_official_ones_are_refused_unless_allowed(tmp_path, name):
    archives = usual(tmp_path / "in", name)
    message = refusal(name, *archives, tmp_path / "out", any_counts=False)
    original = ORIGINALS[name]()
    assert message.startswith(f"{name}: found {len(original.class_names)} classes instead of ")
    for split, rows in original.rows.items():
        assert f"{len(rows)} {split} images instead of " in message or (name, split) == ("imagenet", "train")
    assert "--allow-other-counts" in message


def test_imagenets_training_images_are_counted_when_they_are_read(tmp_path, monkeypatch):
    import preparation

    official = preparation.CATALOG["imagenet"]
    facts = {"num_classes": 5, "num_images": {"train": 21, "validation": 6}}
    changed_entry = type(official)(**{**vars(official), **facts})
    monkeypatch.setitem(preparation.CATALOG, "imagenet", changed_entry)
    archives = usual(tmp_path / "in", "imagenet")
    with pytest.raises(UserError, match=r"^imagenet: found 20 train images instead of 21; "):
        prepare("imagenet", *archives, tmp_path / "out", any_counts=False)
    assert not (tmp_path / "out" / "dataset_dict.json").exists()
    assert prepare("imagenet", *archives, tmp_path / "out") == 0


# disk and OUT


@pytest.mark.parametrize(("kind", "times"), [("tar", 1), ("zip", 1), ("tgz", 2), ("folder", 1)])
def test_too_small_a_disk_is_said_before_anything_is_written(tmp_path, monkeypatch, kind, times):
    archives = packed(tmp_path / "in", ORIGINALS["cub200"](), kind)
    files = [path for archive in archives for path in (archive.rglob("*") if archive.is_dir() else [archive])]
    size = sum(path.stat().st_size for path in files if path.is_file())
    usage = collections.namedtuple("usage", "total used free")
    asked = []

    def with_free(free: float) -> Callable[[Path], Any]:
        return lambda path: (asked.append(path), usage(0, 0, int(free)))[1]

    monkeypatch.setattr(shutil, "disk_usage", with_free(1.01 * times * size))
    assert "GB are needed" in refusal("cub200", *archives, tmp_path / "x" / "out")
    assert asked == [tmp_path]
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(shutil, "disk_usage", with_free(1.03 * times * size))
    assert prepare("cub200", *archives, tmp_path / "x" / "out") == 0


def test_out_must_be_new_or_empty_or_begun_by_the_same_script(tmp_path):
    archives = usual(tmp_path / "in", "cub200")
    out = tmp_path / "out"
    unpacked(out, {"notes.txt": b"mine"})
    assert "is not empty: it holds notes.txt" in refusal("cub200", *archives, out)
    unpacked(tmp_path / "mine", {"train/robin/1.jpg": b"mine", ".partial/mine": b"mine"})
    assert "is not empty: it holds .partial, train" in refusal("cub200", *archives, tmp_path / "mine")
    unpacked(tmp_path / "hidden", {".partial/lock": b"", ".partial/mine": b"mine"})
    assert "is not empty: it holds .partial" in refusal("cub200", *archives, tmp_path / "hidden")
    unpacked(tmp_path / "begun", {".partial/plan.json": json.dumps({"name": "cub200"}).encode(), "notes.txt": b"mine"})
    assert "is not empty: it holds notes.txt" in refusal("cub200", *archives, tmp_path / "begun")
    unpacked(tmp_path / "dogs", {".partial/plan.json": json.dumps({"name": "stanford_dogs"}).encode()})
    assert "is an unfinished stanford_dogs" in refusal("cub200", *archives, tmp_path / "dogs")
    unpacked(tmp_path / "alien", {"dataset_dict.json": b"{}", "manifest.json": b"[]"})
    assert "of another origin" in refusal("cub200", *archives, tmp_path / "alien")
    assert "OUT is a file" in refusal("cub200", *archives, out / "notes.txt")
    (tmp_path / "empty").mkdir()
    assert prepare("cub200", *archives, tmp_path / "empty") == 0


def test_a_finished_set_is_not_overwritten_by_another(tmp_path):
    dogs, birds = usual(tmp_path / "dogs", "stanford_dogs"), usual(tmp_path / "birds", "cub200")
    out = tmp_path / "out"
    assert prepare("stanford_dogs", *dogs, out) == 0
    assert "is a finished stanford_dogs of other archives" in refusal("cub200", *birds, out)
    smaller = changed("stanford_dogs", lambda o: members_of(o).update({"README": b"more" * 4000}), tmp_path / "new")
    assert "is a finished stanford_dogs of other archives" in refusal("stanford_dogs", *smaller, out)


def test_out_may_not_be_the_input_or_lie_in_it(tmp_path):
    (root,) = packed(tmp_path / "in", ORIGINALS["cub200"](), "folder")
    (tmp_path / "link").symlink_to(root)
    for out in (root, root / "out", tmp_path / "link", root / ".." / root.name):
        assert "OUT is the input" in refusal("cub200", root, out)
    archives = usual(tmp_path / "archives", "cub200")
    assert "OUT is the input" in refusal("cub200", *archives, archives[0])
    assert "is not empty: it holds CUB_200_2011.tgz" in refusal("cub200", *archives, tmp_path / "archives")


def test_two_preparations_of_one_folder_do_not_meet(tmp_path):
    archives = usual(tmp_path / "in", "cub200")
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    with open(tmp_path / "out" / ".partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert "another preparation is writing there" in refusal("cub200", *archives, tmp_path / "out")
    assert prepare("cub200", *archives, tmp_path / "out") == 0


def test_a_full_disk_and_a_changed_archive_are_said(tmp_path, monkeypatch):
    import preparation
    import shards

    archives = packed(tmp_path / "in", ORIGINALS["cub200"](), "tar")
    real = shards.put

    def full(target: Path, content: bytes) -> None:
        if "rows" in target.parts:
            raise OSError(28, "No space left on device")
        real(target, content)

    monkeypatch.setattr(shards, "put", full)
    assert "the disk is full; make room and run again" in refusal("cub200", *archives, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    write = preparation.write_shards

    def touched(*arguments: Any) -> None:
        write(*arguments)
        archives[0].touch()

    monkeypatch.setattr(preparation, "write_shards", touched)
    with pytest.raises(UserError, match=r"\.tar changed while it was read; run again"):
        prepare("cub200", *archives, tmp_path / "out")
