"""A disk that cannot hold a run is rejected at the start, and each error of a file system says what to do."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from summaries import make_recipe, start

from cskd_hf.errors import UserError
from cskd_hf.files import advice
from cskd_hf.runs.disk import check_space, probe


def test_a_probe_leaves_nothing(tmp_path):
    probe(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("function", ["rename", "replace", "fsync", "mkdir"])
def test_a_file_system_that_cannot_do_what_a_checkpoint_needs_is_rejected_at_the_start(tmp_path, monkeypatch, function):
    (tmp_path / "run").mkdir()

    def not_supported(path: Any, *_: object, **__: object) -> None:
        if path != tmp_path / "run":  # that folder exists
            raise OSError(errno.ENOTSUP, "Operation not supported")

    # Path: pathlib of Python 3.10 has its own reference to os.mkdir.
    monkeypatch.setattr(Path if function == "mkdir" else os, function, not_supported)
    with pytest.raises(UserError, match=r"run\.output_dir: .*run cannot be written: .*not supported"):
        start(make_recipe(tmp_path / "run"))
    monkeypatch.undo()
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def disk(monkeypatch, free: int, inodes: int = 1000) -> None:
    state = SimpleNamespace(f_bavail=free, f_frsize=1, f_files=2000, f_favail=inodes)
    monkeypatch.setattr(os, "statvfs", lambda _: state)


def test_too_little_space_is_rejected_and_little_is_a_warning(tmp_path, monkeypatch, capsys):
    disk(monkeypatch, free=30_000_000)
    check_space(tmp_path, 10_000_000, num_checkpoints=3)
    assert capsys.readouterr().err == ""
    check_space(tmp_path, 10_000_001, num_checkpoints=3)
    assert "needs 10 MB per checkpoint, and 30 MB are free: not enough for 3" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs 40 MB per checkpoint, and 30 MB are free; free some disk space"):
        check_space(tmp_path, 40_000_000, num_checkpoints=3)
    disk(monkeypatch, free=30_000_000, inodes=7)
    with pytest.raises(UserError, match="has only 7 inodes left"):
        check_space(tmp_path, 1, num_checkpoints=1)


@pytest.mark.parametrize(
    ("number", "todo"),
    [
        (errno.ENOSPC, "free some disk space"),
        (errno.EDQUOT, "free some of your disk quota"),
        (errno.EROFS, "writable again"),
        (errno.ESTALE, "remount"),
        (errno.EMFILE, "ulimit -n 4096"),
        (errno.EACCES, "make the folder writable"),
    ],
)
def test_each_error_of_a_file_system_says_what_to_do(tmp_path, number, todo):
    assert todo in (advice(OSError(number, os.strerror(number)), tmp_path) or "")
    assert advice(OSError(errno.ECHILD, "no disk error"), tmp_path) is None


def test_an_error_without_a_number_is_a_full_disk_if_the_disk_is_full(tmp_path, monkeypatch):
    error = OSError("encoder error -2 when writing image file")
    assert advice(error, tmp_path) is None
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=4096))
    assert advice(error, tmp_path) == "free some disk space"
