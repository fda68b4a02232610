"""Rejected output folders: too small a disk, in use, foreign content, or the input itself."""

from __future__ import annotations

import collections
import fcntl
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from originals import ORIGINALS, downloaded, packed, unpacked
from preparations import changed, members_of, prepare, rejection

from cskd_hf.errors import UserError


@pytest.mark.parametrize(("kind", "times"), [("tar", 1), ("zip", 1), ("tgz", 2), ("folder", 1)])
def test_too_small_a_disk_is_reported_before_anything_is_written(tmp_path, monkeypatch, kind, times):
    archives = packed(tmp_path / "in", ORIGINALS["cub200"](), kind)
    files = [path for archive in archives for path in (archive.rglob("*") if archive.is_dir() else [archive])]
    size = sum(path.stat().st_size for path in files if path.is_file())
    usage = collections.namedtuple("usage", "total used free")
    paths = []

    def with_free(free: float) -> Callable[[Path], Any]:
        return lambda path: (paths.append(path), usage(0, 0, int(free)))[1]

    monkeypatch.setattr(shutil, "disk_usage", with_free(1.01 * times * size))
    assert "GB are needed" in rejection("cub200", *archives, tmp_path / "x" / "out")
    assert paths == [tmp_path]
    assert not (tmp_path / "x").exists()
    monkeypatch.setattr(shutil, "disk_usage", with_free(1.03 * times * size))
    assert prepare("cub200", *archives, tmp_path / "x" / "out") == 0


def plan(name: str) -> bytes:
    return json.dumps({"name": name}).encode()


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"notes.txt": b"mine"}, "is not empty: it holds notes.txt"),
        ({"train/robin/1.jpg": b"mine", ".partial/mine": b"mine"}, "is not empty: it holds .partial, train"),
        ({".partial/lock": b"", ".partial/mine": b"mine"}, "is not empty: it holds .partial"),
        ({".partial/plan.json": plan("cub200"), "notes.txt": b"mine"}, "is not empty: it holds notes.txt"),
        ({".partial/plan.json": plan("stanford_dogs")}, "is an unfinished stanford_dogs"),
        ({"dataset_dict.json": b"{}", "manifest.json": b"[]"}, "holds a dataset that no script made"),
    ],
)
def test_an_out_with_other_content_is_rejected(tmp_path, files, reason):
    archives = downloaded(tmp_path / "in", "cub200")
    assert reason in rejection("cub200", *archives, unpacked(tmp_path / "out", files))


def test_an_out_that_cannot_be_looked_at_gives_one_line(tmp_path):
    """As root, who may read every folder, a name that is too long stands for one that may not be read."""
    archives, out = downloaded(tmp_path / "in", "cub200"), tmp_path / ("x" * 300)
    with pytest.raises(UserError, match=f"^{out}: File name too long$"):
        prepare("cub200", *archives, out)
    for script in ("subset", "resize_dataset"):
        with pytest.raises(UserError, match=f"^{out}.*: File name too long$"):
            importlib.import_module(script).main(["digits", str(out)])


@pytest.mark.parametrize("size", ["nan", "inf", "1e-7", "0"])
def test_a_shard_size_that_is_no_number_above_0_is_rejected(tmp_path, capsys, size):
    with pytest.raises(SystemExit, match="2"):
        prepare("cub200", *downloaded(tmp_path / "in", "cub200"), tmp_path / "out", "--shard-size", size)
    assert "--shard-size must be a number of megabytes above 0" in capsys.readouterr().err


def test_an_empty_out_is_filled_and_a_file_rejected(tmp_path):
    archives = downloaded(tmp_path / "in", "cub200")
    (tmp_path / "out").mkdir()
    assert prepare("cub200", *archives, tmp_path / "out") == 0
    assert "OUT is a file" in rejection("cub200", *archives, tmp_path / "out" / "manifest.json")


def test_a_complete_dataset_is_not_overwritten_by_another(tmp_path):
    dogs, birds = downloaded(tmp_path / "dogs", "stanford_dogs"), downloaded(tmp_path / "birds", "cub200")
    larger = changed("stanford_dogs", lambda o: members_of(o).update({"README": b"more" * 4000}), tmp_path / "new")
    out = tmp_path / "out"
    assert prepare("stanford_dogs", *dogs, out) == 0
    for name, archives in (("cub200", birds), ("stanford_dogs", larger)):
        assert "is a complete stanford_dogs from other archives" in rejection(name, *archives, out)


def test_out_must_not_be_the_input_or_lie_in_it(tmp_path):
    (root,) = packed(tmp_path / "in", ORIGINALS["cub200"](), "folder")
    (tmp_path / "link").symlink_to(root)
    for out in (root, root / "out", tmp_path / "link", root / ".." / root.name):
        assert "OUT is the input" in rejection("cub200", root, out)
    archives = downloaded(tmp_path / "archives", "cub200")
    assert "OUT is the input" in rejection("cub200", *archives, archives[0])
    assert "is not empty: it holds CUB_200_2011.tgz" in rejection("cub200", *archives, tmp_path / "archives")


def test_two_processes_do_not_write_one_folder(tmp_path):
    archives = downloaded(tmp_path / "in", "cub200")
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    with open(tmp_path / "out" / ".partial" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert "another process is writing there" in rejection("cub200", *archives, tmp_path / "out")
    assert prepare("cub200", *archives, tmp_path / "out") == 0


def test_a_full_disk_gives_one_line_and_resumes(tmp_path, monkeypatch):
    import shard_writer

    archives = packed(tmp_path / "in", ORIGINALS["cub200"](), "tar")
    write_file = shard_writer.write_file

    def write_or_fail(target: Path, content: bytes) -> None:
        if "rows" in target.parts:
            raise OSError(28, "No space left on device")
        write_file(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "write_file", write_or_fail)
        assert "the disk is full; make room and rerun" in rejection("cub200", *archives, tmp_path / "out")
    assert prepare("cub200", *archives, tmp_path / "out") == 0


def test_an_archive_that_changes_while_it_is_read_is_named(tmp_path, monkeypatch):
    import preparation

    archives = packed(tmp_path / "in", ORIGINALS["cub200"](), "tar")
    write_splits = preparation.write_splits

    def write_and_touch(*arguments: Any) -> Any:
        archives[0].touch()
        return write_splits(*arguments)

    monkeypatch.setattr(preparation, "write_splits", write_and_touch)
    with pytest.raises(UserError, match=r"\.tar changed while it was read; rerun"):
        prepare("cub200", *archives, tmp_path / "out")
