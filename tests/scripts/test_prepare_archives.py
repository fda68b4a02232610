"""Rejected archives: those of another dataset, broken ones, unsafe ones."""

from __future__ import annotations

import gzip
import io
import itertools
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from originals import ORIGINALS, PACKERS, Original, downloaded, tar, unpacked, zipped
from preparations import changed, members_of, rejection

ROOT = Path(__file__).resolve().parents[2]

# the wrong archive


@pytest.mark.parametrize(("name", "other"), list(itertools.permutations(ORIGINALS, 2)))
def test_archives_of_another_dataset_are_rejected_with_expected_and_actual_content(tmp_path, name, other):
    archives = downloaded(tmp_path / "in", other)
    message = rejection(name, *archives, tmp_path / "out")
    missing, expected = message.split("; expected ")
    assert missing.startswith("found no ")
    assert next(iter(ORIGINALS[name]().files)) in expected
    assert next(iter(members_of(ORIGINALS[other]()))) in expected


def test_a_rejection_is_one_line_and_exit_status_2(tmp_path):
    archive, _ = downloaded(tmp_path / "in", "stanford_dogs")
    arguments = [sys.executable, ROOT / "scripts/prepare_cub200.py", archive, tmp_path / "out"]
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: found no images.txt, image_class_labels.txt,")
    assert done.stderr.count("\n") == 1


def test_other_files_and_empty_folders_are_rejected(tmp_path):
    assert "No such file" in rejection("cub200", tmp_path / "none.tgz", tmp_path / "out")
    for content in (b"", b"<html>not found</html>", bytes(2000)):
        (tmp_path / "CUB_200_2011.tgz").write_bytes(content)
        assert "holds CUB_200_2011.tgz" in rejection("cub200", tmp_path / "CUB_200_2011.tgz", tmp_path / "out")
    unpacked(tmp_path / "empty", {".cache/images.txt": b"1 a/a.jpg"})
    assert "holds nothing" in rejection("cub200", tmp_path / "empty", tmp_path / "out")


def test_imagenet_needs_all_three_archives(tmp_path):
    train, val, devkit = downloaded(tmp_path / "in", "imagenet")
    assert "found no ILSVRC2012_val_00000001.JPEG" in rejection("imagenet", train, devkit, tmp_path / "out")
    assert "found no meta.mat" in rejection("imagenet", train, val, tmp_path / "out")
    assert "found no n01440764.tar" in rejection("imagenet", val, devkit, tmp_path / "out")


# broken archives


def stored(members: dict[str, bytes]) -> bytes:
    return zipped(members, zipfile.ZIP_STORED)


def test_a_truncated_tar_or_zip_is_rejected_with_the_member_it_ends_in(tmp_path):
    members = members_of(ORIGINALS["cub200"]())
    for pack in (tar, stored):
        content = pack(members)
        for name, data in members.items():
            if data != b"mask":  # not unique
                (tmp_path / "a").write_bytes(content[: content.index(data) + len(data) // 2])
                reason = f"ends inside {'or after ' if pack is stored else ''}{name}"
                assert reason in rejection("cub200", tmp_path / "a", tmp_path / "out")
    for cut in range(0, len(content), 997):
        (tmp_path / "a").write_bytes(content[:cut])
        assert re.search("truncated|found no images.txt", rejection("cub200", tmp_path / "a", tmp_path / "out"))


@pytest.mark.parametrize("kind", ["tgz", "tar.bz2"])
def test_a_truncated_compressed_tar_is_rejected(tmp_path, kind):
    members = members_of(ORIGINALS["cub200"]())
    content = PACKERS[kind](members)
    for cut in range(5, len(content), 997):
        (tmp_path / "a").write_bytes(content[:cut])
        message = rejection("cub200", tmp_path / "a", tmp_path / "out")
        assert "is truncated" in message
        assert "the compressed stream has no end" in message
    if kind == "tgz":  # bzip2 decompresses whole blocks of 900 kB
        assert any(name in message for name in members), message


@pytest.mark.parametrize("kind", ["tar", "tgz"])
def test_a_tar_that_ends_between_two_members_is_truncated(tmp_path, kind):
    with tarfile.open(fileobj=io.BytesIO(tar(members_of(ORIGINALS["cub200"]())))) as opened:
        infos = opened.getmembers()
    content = tar(members_of(ORIGINALS["cub200"]()))[: infos[-1].offset]
    if kind == "tgz":
        content = gzip.compress(content)
    (tmp_path / "a").write_bytes(content)
    message = rejection("cub200", tmp_path / "a", tmp_path / "out")
    assert f"truncated or damaged after {infos[-2].name}" in message


def test_a_gzip_without_its_checksum_is_truncated(tmp_path):
    content = PACKERS["tgz"](members_of(ORIGINALS["cub200"]()))
    (tmp_path / "a.tgz").write_bytes(content[:-6])
    assert "truncated or damaged at its end" in rejection("cub200", tmp_path / "a.tgz", tmp_path / "out")
    (tmp_path / "a.tgz").write_bytes(content[:-8] + bytes(8))
    message = rejection("cub200", tmp_path / "a.tgz", tmp_path / "out")
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
    message = rejection("tiny_imagenet", tmp_path / "a.zip", tmp_path / "out", begun=True)
    assert "damaged" in message
    assert name in message


def test_a_broken_inner_class_archive_is_named_with_its_member(tmp_path):
    def cut(original: Original) -> None:
        members_of(original)["n02085620.tar"] = members_of(original)["n02085620.tar"][:1200]

    message = rejection(
        "imagenet", *changed("imagenet", cut, tmp_path / "in"), "--workers=1", tmp_path / "out", begun=True
    )
    assert "ILSVRC2012_img_train.tar: n02085620.tar is truncated: it ends inside n02085620_" in message


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip", "folder"])
def test_an_empty_image_is_named(tmp_path, kind):
    def empty(original: Original) -> None:
        members_of(original)["Images/warehouse/Wäre_1.jpg"] = b""

    archives = changed("mit67", empty, tmp_path / "in", kind)
    message = rejection("mit67", *archives, tmp_path / "out", begun=True)
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
    "unknown": (special("evil.jpg", b"V"), "'evil.jpg' is not a plain file"),
}


@pytest.mark.parametrize("kind", UNSAFE)
def test_an_unsafe_member_of_a_tar_is_named(tmp_path, kind):
    member, reason = UNSAFE[kind]
    plain = [(tarfile.TarInfo(name), content) for name, content in members_of(ORIGINALS["cub200"]()).items()]
    for mode in ("w", "w:gz"):
        (tmp_path / "a").write_bytes(tar([*plain[:5], (member, b""), *plain[5:]], mode))
        message = rejection("cub200", tmp_path / "a", tmp_path / "out")
        assert message.startswith(f"{tmp_path / 'a'} is not safe: its member ")
        assert reason in message


@pytest.mark.parametrize("kind", ["absolute", "above", "symlink", "hardlink"])
def test_an_unsafe_member_of_an_inner_class_archive_is_named(tmp_path, kind):
    member, reason = UNSAFE[kind]

    def insert(original: Original) -> None:
        members_of(original)["n02085620.tar"] = tar([(member, b""), (tarfile.TarInfo("a.JPEG"), b"a")])

    message = rejection(
        "imagenet", *changed("imagenet", insert, tmp_path / "in"), "--workers=1", tmp_path / "out", begun=True
    )
    assert "n02085620.tar is not safe" in message
    assert reason in message


@pytest.mark.parametrize(
    ("name", "mode", "reason"),
    [
        ("/tmp/evil.jpg", 0, "is an absolute path"),
        ("a/../../evil.jpg", 0o100644, "is a path that leaves"),
        ("a\\..\\..\\evil.jpg", 0, "is a path that leaves"),
        ("evil.jpg", 0o120777, "'evil.jpg' is a link"),
        ("evil.jpg", 0o020644, "'evil.jpg' is a device"),
    ],
)
def test_an_unsafe_member_of_a_zip_is_named(tmp_path, name, mode, reason):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("x")
        info.filename, info.external_attr = name, mode << 16
        archive.writestr(info, b"evil")
        for member, content in members_of(ORIGINALS["tiny_imagenet"]()).items():
            archive.writestr(member, content)
    message = rejection("tiny_imagenet", tmp_path / "a.zip", tmp_path / "out")
    assert "is not safe: its member " in message
    assert reason in message
