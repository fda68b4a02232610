"""Train in processes forked from one that has already imported torch."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess

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
