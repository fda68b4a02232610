"""Two runs in one folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_runs import draw_folder, environment, quick, write_recipe

from cskd_hf.errors import UserError
from cskd_hf.runs import lock as run_lock


@pytest.fixture(autouse=True)
def _released():
    yield
    run_lock.release_all()


def left_behind(folder: Path, **changes: object) -> Path:
    """A lock as a process that was killed leaves it."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    holder = {"host": socket.gethostname(), "pid": gone.pid, "started": "1"} | changes
    path = folder / run_lock.NAME
    path.write_text(json.dumps(holder), encoding="utf-8")
    return path


def holder_of(folder: Path) -> int:
    return json.loads((folder / run_lock.NAME).read_text(encoding="utf-8"))["pid"]


def test_a_lock_names_its_process_and_goes_with_it(tmp_path):
    run_lock.lock(tmp_path)
    assert holder_of(tmp_path) == os.getpid()
    run_lock.lock(tmp_path)  # once more in the same process
    run_lock.release_all()
    assert not list(tmp_path.iterdir())


def test_a_process_that_lives_keeps_others_out(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from cskd_hf.runs.lock import lock
lock(Path({str(tmp_path)!r}))
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"is being trained in by process {other.pid} on this machine"):
            run_lock.lock(tmp_path)
        assert holder_of(tmp_path) == other.pid
        other.kill()
        other.wait()
    run_lock.lock(tmp_path)  # the killed one left its lock
    assert holder_of(tmp_path) == os.getpid()


def test_a_process_number_that_belongs_to_another_by_now_holds_nothing(tmp_path):
    left_behind(tmp_path, pid=os.getppid(), started="1")  # alive, but started at another time
    run_lock.lock(tmp_path)
    assert holder_of(tmp_path) == os.getpid()


def test_another_machines_lock_is_taken_over_when_no_sign_of_life_comes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_lock, "PATIENCE", 2.5)
    left_behind(tmp_path, host="elsewhere", pid=7)
    run_lock.lock(tmp_path)
    assert "was left by process 7 on elsewhere; waiting" in capsys.readouterr().out
    assert holder_of(tmp_path) == os.getpid()


def test_another_machines_lock_that_beats_keeps_others_out(tmp_path, monkeypatch):
    path = left_behind(tmp_path, host="elsewhere", pid=7)
    code = f"import os, time\nfor _ in range(60): time.sleep(0.5); os.utime({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        with pytest.raises(UserError, match="is being trained in by process 7 on elsewhere"):
            run_lock.lock(tmp_path)
        other.kill()
    assert holder_of(tmp_path) == 7


def test_a_held_lock_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.05)
    run_lock.lock(tmp_path)
    path = tmp_path / run_lock.NAME
    before, end = path.stat().st_mtime_ns, time.monotonic() + 20
    while path.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.02)
    assert path.stat().st_mtime_ns > before


def test_a_half_written_lock_is_waited_out_and_not_read_as_free(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 1.5)
    (tmp_path / run_lock.NAME).write_text('{"host": "els', encoding="utf-8")
    began = time.monotonic()
    run_lock.lock(tmp_path)
    assert time.monotonic() - began >= 1
    assert holder_of(tmp_path) == os.getpid()


def test_the_command_refuses_a_folder_that_is_being_trained_in_and_touches_nothing(tmp_path):
    recipe = write_recipe(tmp_path / "run.yaml", draw_folder(tmp_path / "images", {"train": (4, 4), "test": (2, 2)}))
    folder = tmp_path / "run"
    folder.mkdir()
    run_lock.lock(folder)
    done = quick(recipe)
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: run.output_dir: {folder} is being trained in by process {os.getpid()}")
    assert [file.name for file in folder.iterdir()] == [run_lock.NAME]
    run_lock.release_all()
    assert quick(recipe).status == 0
    assert not (folder / run_lock.NAME).exists()
