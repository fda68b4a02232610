"""The folder that is written, and its disk: too small, in use, of another origin, or the input itself."""

from __future__ import annotations

import collections
import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from originals import ORIGINALS, packed, unpacked, usual
from refused_preparations import changed, members_of, prepare, refusal

from cskd_hf.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("scripts_on_path")


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
