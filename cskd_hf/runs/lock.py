"""One run in a folder at a time."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path

from cskd_hf.errors import UserError

NAME = "lock.json"
HEARTBEAT = 15.0  # seconds between signs of life
PATIENCE = 45.0  # seconds without one until the lock of another machine counts as left behind

_held: dict[Path, tuple[int, threading.Event]] = {}


def lock(folder: Path) -> None:
    """Hold a run folder until `release_all`, or until this process ends.

    The file names machine and process. A lock whose process is gone is taken over: at once on the same machine; from
    another machine after watching for three heartbeats that do not come.

    Raises:
        UserError: another run holds the folder.
    """
    path = folder / NAME
    while True:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            if _is_own(path):
                return
            _wait_for_stale(path)
            path.unlink(missing_ok=True)
            continue
        with os.fdopen(descriptor, "w") as file:
            json.dump({"host": socket.gethostname(), "pid": os.getpid(), "started": _started(os.getpid())}, file)
        break
    stop = threading.Event()
    threading.Thread(target=_beat, args=(path, stop), daemon=True).start()
    _held[path] = (os.getpid(), stop)


def release_all() -> None:
    """Give back what this process holds; also called when it ends by itself."""
    for path, (pid, stop) in list(_held.items()):
        del _held[path]
        if os.getpid() == pid:  # a forked child inherits the list, not the lock
            stop.set()
            with contextlib.suppress(OSError):  # the disk is gone; what is left there counts as stale
                path.unlink(missing_ok=True)


atexit.register(release_all)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        try:
            os.utime(path)
        except OSError:
            return  # removed by hand, or the disk is gone


def _is_own(path: Path) -> bool:
    holder = _read(path)
    return holder is not None and (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())


def _read(path: Path) -> dict[str, object] | None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {"host": holder["host"], "pid": holder["pid"], "started": holder["started"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None  # being written, or cut by a kill


def _wait_for_stale(path: Path) -> None:
    """Returns when the lock is nobody's any more."""
    holder = _read(path)
    if holder is not None and holder["host"] == socket.gethostname():
        if _started(int(str(holder["pid"]))) != holder["started"]:
            return  # the process is gone, or its number belongs to another by now
        raise _refusal(path, f"process {holder['pid']} on this machine")
    by = "another process" if holder is None else f"process {holder['pid']} on {holder['host']}"
    print(f"{path} was left by {by}; waiting {PATIENCE:.0f} s for a sign of life", flush=True)
    before = _changed(path)
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        time.sleep(1)
        now = _changed(path)
        if now is None:
            return
        if now != before:
            raise _refusal(path, by)


def _refusal(path: Path, by: str) -> UserError:
    return UserError(
        f"run.output_dir: {path.parent} is being trained in by {by}; wait for it, or name another folder "
        f"(if you know that it is not, remove {path})"
    )


def _changed(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this machine started, in the kernel's ticks; None where there is no such process."""
    try:
        # The name, in parentheses, may hold spaces: the fields after it are counted.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc: whether it is alive must do
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "alive"
