"""Train in processes forked from one that has already imported torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess

from cskd_hf.paper.launch import failure_reason

# These imports take seconds, longer than the trainings that this module is for.
_PRELOAD = [
    *("accelerate", "datasets", "matplotlib.figure", "sklearn.datasets", "timm", "torch", "torchvision"),
    *("cskd_hf.engine.build", "cskd_hf.publish", "cskd_hf.report.figures", "cskd_hf.runs.folder"),
]


def start_forked(arguments: Sequence[str], log: str) -> ForkServerProcess:
    """Start `python -m cskd_hf.train ARGUMENTS` in a fork of a preloaded process.

    Args:
        log: the file that receives its stdout and stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    process = context.Process(target=_train, args=(list(arguments), log))
    process.start()
    return process


def _train(arguments: list[str], log: str) -> None:
    from cskd_hf import train
    from cskd_hf.errors import run_command

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    multiprocessing.set_start_method(None, force=True)  # else loader workers would use this process's fork server
    run_command(lambda: train.main(arguments))


def train_forked(command: Sequence[str]) -> tuple[int, str]:
    """`train` of `run_missing` for runs of seconds; each run's output appears when it ends."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        process = start_forked(command[list(command).index("cskd_hf.train") + 1 :], log.name)
        process.join()
        output = log.readlines()
    sys.stderr.writelines(output)
    assert process.exitcode is not None
    return process.exitcode, failure_reason(output)
