"""Whether the disk of a run folder can hold the run, asked before hours of training."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.files import sync, write_bytes

_MIN_INODES = 50  # files and folders of a small run


def probe(folder: Path) -> None:
    """Do in a run folder, on a small scale, what saving a checkpoint does there.

    Raises:
        OSError: the file system cannot do it.
    """
    partial, final = folder / ".partial-probe", folder / ".probe"
    try:
        partial.mkdir(exist_ok=True)
        write_bytes(partial / "file", b"content")
        sync(partial / "file")
        sync(partial)
        os.rename(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)


def check_space(folder: Path, checkpoint_bytes: int, num_checkpoints: int) -> None:
    """Reject a disk without room for one more checkpoint; warn if the checkpoints that the run retains do not fit.

    Args:
        num_checkpoints: that the run has on disk at once, the one being written included.

    Raises:
        UserError: too few bytes or inodes are free.
    """
    state = os.statvfs(folder)
    free = state.f_bavail * state.f_frsize
    if state.f_files and state.f_favail < _MIN_INODES:
        raise UserError(
            f"run.output_dir: the disk of {folder} has only {state.f_favail} inodes left; remove some files, or name a "
            "folder on another disk"
        )
    needed = f"{folder} needs {checkpoint_bytes / 1e6:,.0f} MB per checkpoint, and {free / 1e6:,.0f} MB are free"
    if free < checkpoint_bytes:
        raise UserError(f"run.output_dir: {needed}; free some disk space, or name a folder on another disk")
    if free < num_checkpoints * checkpoint_bytes:
        print(
            f"warning: {needed}: not enough for {num_checkpoints}; free some disk space, or lower "
            "run.checkpoints_total_limit",
            file=sys.stderr,
        )
