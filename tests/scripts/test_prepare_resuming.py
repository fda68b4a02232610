"""Killed and interrupted preparations, resumed by the same command."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from originals import ORIGINALS, imagenet, packed
from preparations import KilledError, assert_prepared, command, manifest, prepare


def kill_in_the_middle(arguments: list[str], out: Path) -> dict[str, int]:
    """Kill -9 once a shard is complete; returns the inode of every complete shard, by its rows file."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
    rows = out / ".partial" / "rows"
    try:
        while not (rows.is_dir() and any(not name.endswith(".tmp") for name in os.listdir(rows))):
            assert process.poll() is None
            time.sleep(0.001)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 10
        while is_alive(process.pid):
            assert time.monotonic() < deadline, "workers outlived their parent"
            time.sleep(0.01)
    finally:
        if is_alive(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    inodes = {}
    for record in rows.glob("*[0-9]"):
        split, number = record.name.split("-")
        (shard,) = (out / ".partial" / split).glob(f"data-{number}-of-*.arrow")
        inodes[record.name] = shard.stat().st_ino
    return inodes


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_killed_preparation_resumes_without_rewriting_complete_shards(tmp_path):
    original = imagenet(num_images=40, size=256)
    archives = packed(tmp_path / "archives", original, "tar")
    out = tmp_path / "out"
    options = ["--workers", 2, "--shard-size", 0.5]
    before = kill_in_the_middle(command("imagenet", *archives, out, *options), out)
    assert not (out / "dataset_dict.json").exists()
    moved = [path.rename(tmp_path / path.name) for path in archives]  # resuming does not depend on the path
    assert prepare("imagenet", *moved, out, *options) == 0
    assert_prepared(out, original)
    assert 0 < len(before) < sum(facts["num_shards"] for facts in manifest(out)["splits"].values())
    for record, inode in before.items():
        split, number = record.split("-")
        (shard,) = (out / split).glob(f"data-{number}-of-*.arrow")
        assert shard.stat().st_ino == inode


def test_a_killed_preparation_of_other_archives_is_discarded(tmp_path):
    original = imagenet(num_images=30, size=160)
    archives = packed(tmp_path / "archives", original, "tar")
    options = ["--workers", 1, "--shard-size", 0.06]
    assert kill_in_the_middle(command("imagenet", *archives, tmp_path / "out", *options), tmp_path / "out")
    changed = imagenet(num_images=31, size=160)
    again = packed(tmp_path / "others", changed, "tar")
    assert prepare("imagenet", *again, tmp_path / "out", *options) == 0
    assert_prepared(tmp_path / "out", changed)


def test_an_interruption_at_any_rename_leaves_a_complete_dataset_or_none_and_resumes(tmp_path, monkeypatch):
    original = ORIGINALS["cub200"]()
    archives = packed(tmp_path / "in", original, "tgz")
    real, calls = os.replace, []
    limit = 0

    def replace(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) > limit:
            raise KilledError
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    interrupted = 0
    while True:
        out = tmp_path / f"out-{limit}"
        calls.clear()
        try:
            prepare("cub200", *archives, out, "--shard-size", 0.002)
            break
        except KilledError:
            interrupted += 1
        if (out / "dataset_dict.json").exists():
            assert_prepared(out, original)
        before = limit
        limit, calls[:] = 10**9, []
        assert prepare("cub200", *archives, out, "--shard-size", 0.002) == 0
        assert_prepared(out, original)
        limit = before + 1
    assert_prepared(out, original)
    assert interrupted > 12


def test_another_shard_size_discards_the_unfinished_dataset(tmp_path, monkeypatch):
    original = ORIGINALS["cub200"]()
    archives = packed(tmp_path / "in", original, "tar")

    def killed(*_: Any, **__: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("preparation.write_manifest", killed)
        with pytest.raises(KilledError):
            prepare("cub200", *archives, tmp_path / "out", "--shard-size", 0.002)
    assert len(list((tmp_path / "out").rglob("data-*.arrow"))) > 2
    assert prepare("cub200", *archives, tmp_path / "out") == 0
    assert_prepared(tmp_path / "out", original)
    assert len(list((tmp_path / "out").rglob("data-*.arrow"))) == 2
