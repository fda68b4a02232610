"""The lock that keeps two runs out of one folder."""

from __future__ import annotations

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
def _short_lease(monkeypatch):
    monkeypatch.setattr(run_lock, "LEASE", 2.0)
    monkeypatch.setattr(run_lock, "HEARTBEAT", 0.2)
    yield
    run_lock.release_all()


def write_lock(folder: Path, pid: int, host: str) -> Path:
    """The lock file of a killed process."""
    path = folder / run_lock.NAME
    fields = {"pid": pid, "host": host, "mode": "lease", "token": "0" * 32, "duration": 2.0}
    path.write_text("filelock/2\n" + "".join(f"{key}={value}\n" for key, value in fields.items()), encoding="utf-8")
    return path


def holder_of(folder: Path) -> str:
    return run_lock._holder(folder / run_lock.NAME)


THIS_PROCESS = f"process {os.getpid()} on {socket.gethostname()}"


def test_a_lock_names_its_process_and_is_renewed_until_released(tmp_path):
    run_lock.lock(tmp_path)
    run_lock.lock(tmp_path)  # the same process may lock again
    path = tmp_path / run_lock.NAME
    assert holder_of(tmp_path) == THIS_PROCESS
    before, end = path.stat().st_mtime_ns, time.monotonic() + 20
    while path.stat().st_mtime_ns == before and time.monotonic() < end:
        time.sleep(0.02)
    assert path.stat().st_mtime_ns > before
    run_lock.release_all()
    assert not list(tmp_path.iterdir())


def test_a_live_lock_is_respected_and_a_dead_one_is_taken_over_at_once(tmp_path):
    code = f"""
import time
from pathlib import Path
from cskd_hf.runs import lock as run_lock
run_lock.LEASE, run_lock.HEARTBEAT = 2.0, 0.2
run_lock.lock(Path({str(tmp_path)!r}))
print("locked", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {other.pid} on {socket.gethostname()} is training in"):
            run_lock.lock(tmp_path)
        other.kill()
        other.wait()
    began = time.monotonic()
    run_lock.lock(tmp_path)
    assert time.monotonic() - began < 1
    assert holder_of(tmp_path) == THIS_PROCESS


@pytest.mark.parametrize("content", [None, "filelock/2\npid=7\nhost=els"], ids=["another host's", "half-written"])
def test_a_lock_whose_holder_cannot_be_checked_is_taken_over_once_the_lease_expires(tmp_path, capsys, content):
    path = write_lock(tmp_path, 7, "elsewhere")
    if content:
        path.write_text(content, encoding="utf-8")
    began = time.monotonic()
    run_lock.lock(tmp_path)
    assert time.monotonic() - began >= 1.5
    assert "waiting up to 2 s to see whether it is alive" in capsys.readouterr().out
    assert holder_of(tmp_path) == THIS_PROCESS


def test_a_lock_that_another_host_renews_is_respected(tmp_path):
    path = write_lock(tmp_path, 7, "elsewhere")
    code = f"import os, time\nfor _ in range(60): time.sleep(0.5); os.utime({str(path)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as other:
        with pytest.raises(UserError, match="process 7 on elsewhere is training in"):
            run_lock.lock(tmp_path)
        other.kill()
    assert holder_of(tmp_path) == "process 7 on elsewhere"


def test_a_lock_that_is_removed_is_reported(tmp_path, capfd):
    run_lock.lock(tmp_path)
    (tmp_path / run_lock.NAME).unlink()
    end = time.monotonic() + 20
    error = ""
    while not error and time.monotonic() < end:
        time.sleep(0.1)
        error = capfd.readouterr().err
    assert error.startswith(f"warning: {tmp_path / run_lock.NAME} was lost")


def test_the_command_rejects_a_locked_folder_without_changing_it(tmp_path, monkeypatch):
    monkeypatch.undo()  # the command uses the real lease
    recipe = write_recipe(tmp_path / "run.yaml", draw_folder(tmp_path / "images", {"train": (4, 4), "test": (2, 2)}))
    folder = tmp_path / "run"
    folder.mkdir()
    run_lock.lock(folder)
    done = quick(recipe)
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: run.output_dir: {THIS_PROCESS} is training in {folder}")
    assert [file.name for file in folder.iterdir()] == [run_lock.NAME]
    run_lock.release_all()
