"""Train in processes forked from one that has already imported torch."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess

from cskd_hf.paper.launch import last_words

# What costs a training seconds before its first step, most of its time where it is only tried out.
_SLOW_IMPORTS = [
    *("accelerate", "datasets", "matplotlib.figure", "sklearn.datasets", "timm", "torch", "torchvision"),
    *("cskd_hf.engine.build", "cskd_hf.publish", "cskd_hf.report.figures", "cskd_hf.runs.folder"),
]


def start_forked(arguments: Sequence[str], log: str) -> ForkServerProcess:
    """Start what `python -m cskd_hf.train ARGUMENTS` does in a process forked from one that has imported everything.

    Args:
        log: the file that takes its stdout and stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SLOW_IMPORTS)
    process = context.Process(target=_forked, args=(list(arguments), log))
    process.start()
    return process


def _forked(arguments: list[str], log: str) -> None:
    from cskd_hf import train
    from cskd_hf.errors import run_command

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    multiprocessing.set_start_method(None, force=True)  # else the loader's workers start as this process did
    run_command(lambda: train.main(arguments))


def train_forked(command: Sequence[str]) -> tuple[int, str]:
    """`run_missing`'s `train` for runs of seconds; their output comes when each has ended."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        process = start_forked(command[list(command).index("cskd_hf.train") + 1 :], log.name)
        process.join()
        said = log.readlines()
    sys.stderr.writelines(said)
    assert process.exitcode is not None
    return process.exitcode, last_words(said)
