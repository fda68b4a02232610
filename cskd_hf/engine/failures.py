"""What stops a run in its middle, told in one line that names the last good checkpoint."""

from __future__ import annotations

import errno
import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cskd_hf.data.splits import ImageSplit
from cskd_hf.engine.distributed import Peers, is_broken_collective
from cskd_hf.engine.updates import NonFiniteLossError
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.runs.checkpoint import CheckpointError, list_checkpoints
from cskd_hf.runs.progress import Progress


class NonFiniteWeightsError(RuntimeError):
    """A weight is NaN or infinite: a gradient was, under a finite loss."""


def check_weights(module: nn.Module, step: int) -> None:
    """Called before a checkpoint is written, so that none holds weights that are not finite; waits for the device.

    Raises:
        NonFiniteWeightsError: naming the first parameter and the step.
    """
    names, parameters = zip(*module.named_parameters(), strict=True)
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).tolist()  # one wait for all
    if not all(finite):
        raise NonFiniteWeightsError(f"step {step}: {names[finite.index(False)]}")


def check_predictions(predictions: Mapping[str, Predictions]) -> str | None:
    """What is wrong with logits that no result can be made of, or None.

    Args:
        predictions: split → those of the trained network.
    """
    for split, seen in predictions.items():
        broken = int((~seen.logits.isfinite().all(dim=1)).sum())
        if broken:
            return (
                f"the logits of {broken} of {len(seen.logits)} images of the {split} split are not finite: training "
                "diverged. Lower optimizer.lr, set run.clip_grad, or run in float32"
            )
    return None


def let_workers_die() -> None:
    """From here on a loader's process that ends raises nothing.

    torch raises from its handler of SIGCHLD, wherever the program then is: a process that was killed may be met first
    as a closed pipe, and its signal arrive while the error is being told.
    """
    while signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, None):
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # of a signal that had already come: torch's handler raises once for each loader
            continue


def tell(error: Exception, folder: Path, train: ImageSplit, progress: Progress, peers: Peers) -> int:
    """Print what happened and return the exit status; an error that is none of these is raised again."""
    saved = list_checkpoints(folder / "checkpoints")
    resume = f"the last complete checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
    if not folder.is_dir():  # another machine's
        resume = f"checkpoints are in {folder} of {peers.names[0]}"
    if isinstance(error, NonFiniteLossError):
        told = {name: str(value) for name, value in error.terms.items()}  # JSON has no word for NaN
        report = {"step": error.step, "epoch": progress.epoch, "position": progress.position, "terms": told}
        report["batch"] = [train.describe(int(row)) for row in error.batch.index]
        path = folder / f"nonfinite-rank{peers.rank}.json"
        path.write_text(json.dumps(report, indent=2), encoding="utf-8")
        line = (
            f"the loss is not finite at {error}; the optimizer did not step. {path} lists the batch. Lower "
            f"optimizer.lr, set run.clip_grad, or run in float32; {resume}"
        )
    elif isinstance(error, NonFiniteWeightsError):
        line = (
            f"weights are not finite at {error}, though every loss was; no checkpoint of them was written. Lower "
            f"optimizer.lr, set run.clip_grad, or run in float32; {resume}"
        )
    elif is_broken_collective(error):
        gone = peers.missing()
        present = [rank for rank in range(len(peers.names)) if rank not in gone]
        if gone and present and peers.rank != present[0]:
            return 1  # one tells for all
        who = " and ".join(peers.names[rank] for rank in gone) or f"a connection ({' '.join(str(error).split())})"
        line = (
            f"lost {who} at step {progress.step}: killed, out of memory, cut off, or stopped by an error of its own, "
            f"which it then told; every process stops. The same command goes on; {resume}"
        )
    elif isinstance(error, CheckpointError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
    ):
        line = f"{error}; make room and run the same command again; {resume}"
    elif isinstance(error, (ConnectionError, EOFError)) or (
        isinstance(error, RuntimeError) and "DataLoader worker" in str(error)
    ):  # whichever of them the training process meets first
        reason = " ".join(str(error).split())
        line = (
            f"a loader process was killed ({reason}); out of memory? Lower data.workers and run the same command "
            f"again; {resume}"
        )
    else:
        raise error
    print(f"error: {line}", file=sys.stderr)
    return 1
