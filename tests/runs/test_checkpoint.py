"""Checkpoints on disk: atomic, synced, checksummed, rotated."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_checkpoints import save, weights_of

from cskd_hf.runs.checkpoint_folders import list_checkpoints, newest_checkpoint

FILES = ("model.safetensors", "optimizer.pt", "state.json")


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


class Killed(BaseException):
    """A stand-in for SIGKILL, which nothing catches."""


# (moment, owner, function, number of calls before the kill)
MOMENTS = [
    ("the weights", Path, "write_bytes", 0),
    ("the optimizer", torch, "save", 0),
    ("the state", Path, "write_text", 0),
    ("the first sync", os, "fsync", 0),
    ("the last file's sync", os, "fsync", 2),
    ("the folder's sync", os, "fsync", 3),
    ("the renaming", os, "rename", 0),
]


@pytest.mark.parametrize(("owner", "function", "passes"), [m[1:] for m in MOMENTS], ids=[m[0] for m in MOMENTS])
def test_a_kill_while_saving_leaves_the_earlier_checkpoint_intact(tmp_path, monkeypatch, owner, function, passes):
    save(tmp_path, 1, keep=1)
    original, calls = getattr(owner, function), []

    def kill(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) <= passes:
            return original(*args, **kwargs)
        for path in args:  # a truncated file, if this call writes one
            if isinstance(path, Path) and path.suffix in (".safetensors", ".pt", ".json"):
                with path.open("wb") as file:
                    file.write(b"half")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, function, kill)
        with pytest.raises(Killed):
            save(tmp_path, 2, keep=1)
    assert len(calls) == passes + 1
    assert names(tmp_path) == ["step-00000001"]
    earlier = newest_checkpoint(tmp_path)
    assert earlier == tmp_path / "step-00000001"
    torch.testing.assert_close(weights_of(earlier), weights_of(save(tmp_path / "again", 1)), rtol=0, atol=0)

    # The next save removes the leftovers.
    assert save(tmp_path, 2, keep=1) == newest_checkpoint(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["again", "step-00000002"]


def test_files_and_folders_are_synced_around_the_rename(tmp_path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_sync(descriptor: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", lambda *paths: (events.append("rename"), rename(*paths)))
    save(tmp_path, 1)
    assert events == ["file", "file", "file", "folder", "rename", "folder"]


def test_only_the_newest_checkpoints_remain_by_number(tmp_path):
    for number in (1, 2, 99_999_999, 100_000_000):
        save(tmp_path, number, keep=2)
    assert names(tmp_path) == ["step-100000000", "step-99999999"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut":
        path.write_bytes(content[:-9])
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "missing"])
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_reported_and_skipped(tmp_path, capsys, file, how):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == newest
    damage(newest / file, how)
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000001"
    captured = capsys.readouterr()
    assert "step-00000002 is damaged" in captured.err
    assert file in captured.err
    assert captured.out == ""


def test_any_flipped_bit_of_the_state_is_detected(tmp_path):
    path = save(tmp_path, 1) / "state.json"
    content = path.read_bytes()
    undetected = []
    for offset in range(len(content)):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        if newest_checkpoint(tmp_path) is not None:
            undetected.append(content[offset - 5 : offset + 5])
    assert undetected == []


def test_without_an_intact_checkpoint_there_is_none(tmp_path, capsys):
    assert newest_checkpoint(tmp_path / "missing") is None
    for number in (1, 2):
        damage(save(tmp_path, number) / "model.safetensors", "cut")
    assert newest_checkpoint(tmp_path) is None
    assert capsys.readouterr().err.count("is damaged") == 2


def test_damaged_newer_checkpoints_do_not_crowd_out_new_ones(tmp_path):
    save(tmp_path, 4)
    for number in (8, 10):
        damage(save(tmp_path, number) / "optimizer.pt", "flipped")
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000004"
    for number in (5, 6):
        assert save(tmp_path, number, keep=2).is_dir()
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000006"
    assert names(tmp_path) == ["step-00000005", "step-00000006"]


def test_saving_a_step_again_replaces_its_damaged_checkpoint(tmp_path):
    damage(save(tmp_path, 3, seed=1) / "state.json", "cut")
    again = save(tmp_path, 3, seed=2)
    assert newest_checkpoint(tmp_path) == again
    torch.testing.assert_close(weights_of(again), weights_of(save(tmp_path / "other", 3, seed=2)), rtol=0, atol=0)


def test_other_files_and_folders_are_ignored(tmp_path):
    others = ["notes.txt", "step-2", "step-00000009.bak", "old-step-00000009", ".partial-step-00000009"]
    for name in others[1:]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text("{}")
    (tmp_path / others[0]).write_text("mine")
    (tmp_path / "step-00000099").write_text("a file of that name")
    assert newest_checkpoint(tmp_path) is None
    for number in (1, 2):
        path = save(tmp_path, number, keep=1)
    assert list_checkpoints(tmp_path) == [path]
    assert newest_checkpoint(tmp_path) == path
    assert set(os.listdir(tmp_path)) == {*others, "step-00000099", "step-00000002"}
