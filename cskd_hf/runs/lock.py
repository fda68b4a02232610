"""One run per folder at a time, by a lease that the training process renews.

A lease file rather than a kernel lock: it names its holder, and works on network filesystems without `flock`.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cskd_hf.errors import UserError

if TYPE_CHECKING:
    from filelock import LeaseCompromise, SoftFileLease

NAME = "run.lock"
LEASE = 45.0  # seconds without a renewal until another host may take the folder over
HEARTBEAT = 5.0  # seconds between renewals

_leases: dict[Path, SoftFileLease] = {}


def lock(folder: Path) -> None:
    """Lock a run folder until `release_all`, or until this process ends.

    The lock of a dead process is taken over: at once if it ran on this host, else after `LEASE` seconds without a
    renewal.

    Raises:
        UserError: another run is training in the folder.
    """
    from filelock import SoftFileLease, Timeout  # slow to import, and every command imports this module

    path = folder / NAME
    if path in _leases:
        return
    lease = SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=HEARTBEAT, on_compromise=_warn)
    last_renewal = _renewal(path)
    try:
        try:
            lease.acquire(timeout=0.5)
        except Timeout:
            holder = _holder(path)
            print(f"{path} belongs to {holder}; waiting up to {LEASE:.0f} s to see whether it is alive", flush=True)
            lease.acquire(timeout=2 * LEASE, cancel_check=lambda: _renewal(path) not in (None, last_renewal))
    except Timeout:
        raise UserError(
            f"run.output_dir: {holder} is training in {folder}; wait for it, or name another folder (if it no longer "
            f"exists, remove {path})"
        ) from None
    _leases[path] = lease


def release_all() -> None:
    """Release the locks of this process; filelock also does so when the process exits."""
    while _leases:
        _, lease = _leases.popitem()
        with contextlib.suppress(OSError):  # an unmounted disk; the lease expires
            lease.release()


def _warn(loss: LeaseCompromise) -> None:
    print(f"warning: {loss.lock_file} was lost ({loss.reason}): another run may start in this folder", file=sys.stderr)


def _holder(path: Path) -> str:
    try:
        fields = dict(line.split("=", 1) for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
        # filelock appends the PID namespace to the host's name, after a question mark.
        return f"process {fields['pid']} on {fields['host'].partition('?')[0]}"
    except (OSError, ValueError, KeyError):
        return "another process"  # the file is being written, or gone


def _renewal(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
