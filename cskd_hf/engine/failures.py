"""Faults in mid-run, reported in one line that names the last complete checkpoint."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cskd_hf.engine.memory import explain_out_of_host_memory, explain_out_of_memory
from cskd_hf.engine.objective import lacks_deterministic
from cskd_hf.engine.run import Run
from cskd_hf.engine.scalars import DeviceTimeoutError
from cskd_hf.engine.updates import NonFiniteLossError
from cskd_hf.errors import is_broken_collective, is_out_of_device_memory, is_out_of_host_memory, one_line
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.evaluation.rows import finite_rows
from cskd_hf.files import advice
from cskd_hf.runs.checkpoint import CheckpointError
from cskd_hf.runs.checkpoint_folders import list_checkpoints


class RunFailedError(Exception):
    """The run cannot continue; the message is for the user, empty on ranks that leave it to another."""


MIN_LOSS_SCALE = 1e-4  # as in fairseq: a scale starts at 65,536 and halves with each skipped step


class NonFiniteWeightsError(RuntimeError):
    """A weight, or in fp16 every gradient, became non-finite although the loss was finite."""


def check_weights(module: nn.Module, scaler: Any, step: int) -> None:
    """Called before a checkpoint is saved, so that none holds non-finite weights. A device sync.

    Args:
        scaler: of the loss in fp16, or None. It skips steps whose gradients are not finite, silently all of them.

    Raises:
        NonFiniteWeightsError: naming the step, and the first parameter or the loss scale.
    """
    names, parameters = zip(*module.named_parameters(), strict=True)
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters]).tolist()  # one sync
    if not all(finite):
        name = names[finite.index(False)]
        raise NonFiniteWeightsError(f"weights are not finite at step {step}, although every loss was: {name}")
    if scaler is not None and scaler.get_scale() < MIN_LOSS_SCALE:
        scale = f"even at a loss scale of {scaler.get_scale():.1g}"
        raise NonFiniteWeightsError(f"gradients in fp16 are not finite at step {step}, {scale}")


def find_divergence(predictions: Mapping[str, Predictions]) -> str | None:
    """One line for the user if the final logits of a split are not finite, else None.

    Args:
        predictions: split -> predictions of the trained network.
    """
    for split, of_split in predictions.items():
        logits = of_split.logits
        broken = int((~finite_rows(logits)).sum())
        if broken:
            return (
                f"the logits of {broken} of {len(logits)} images of the {split} split are not finite: training "
                "diverged. Lower optimizer.lr, set run.clip_grad, or train in float32"
            )
    return None


def ignore_worker_deaths() -> None:
    """From here on, a loader worker that dies raises nothing.

    torch raises from its SIGCHLD handler wherever the program happens to be. A killed worker may first show up as a
    closed pipe, and its signal may arrive while that error is being reported.
    """
    while signal.getsignal(signal.SIGCHLD) not in (signal.SIG_DFL, None):
        try:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        except RuntimeError:  # from a signal already delivered: torch's handler raises once per loader
            continue


def explain(error: Exception, run: Run) -> str | None:
    """One line for the user about what stopped the run; None for any other error, which is a bug.

    The line is empty on ranks that leave it to another.
    """
    problem = _problem(error, run)
    if not problem:
        return problem
    if not run.folder.is_dir():  # on another machine
        return f"{problem}; checkpoints are in {run.folder} of {run.ranks.names[0]}"
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    newest = f"the last complete checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
    return f"{problem}; {newest}"


def _problem(error: Exception, run: Run) -> str | None:
    """What stopped the run, and what to do about it; otherwise as `explain`."""
    reason = one_line(error)
    if is_out_of_device_memory(error):
        return explain_out_of_memory(error, run.recipe, run.learner.module, run.accelerator)
    if is_out_of_host_memory(error):
        return explain_out_of_host_memory(error, run.recipe)
    if isinstance(error, NonFiniteLossError):
        return (
            f"the loss is not finite at {error}; the optimizer did not step. {_dump_batch(error, run)} lists the "
            "batch. Lower optimizer.lr, set run.clip_grad, or train in float32"
        )
    if isinstance(error, NonFiniteWeightsError):
        return (
            f"{error}; no checkpoint was saved at this step. Lower optimizer.lr, set run.clip_grad, or train in float32"
        )
    if is_broken_collective(error) or (isinstance(error, DeviceTimeoutError) and len(run.ranks.names) > 1):
        missing = run.ranks.missing()
        present = [rank for rank in range(len(run.ranks.names)) if rank not in missing]
        if missing and present and run.ranks.rank != present[0]:
            return ""
        lost = " and ".join(run.ranks.names[rank] for rank in missing) or f"a connection ({reason})"
        return (
            f"lost {lost} at step {run.progress.step}: killed, out of memory, disconnected, or stopped by an error it "
            "printed itself; every process stops. Rerun the same command to resume"
        )
    if lacks_deterministic(error):
        return lacks_deterministic(error)
    todo = advice(error, run.folder) if isinstance(error, OSError) else None
    if todo is not None or isinstance(error, CheckpointError):
        return f"{reason}; {todo or f'make {run.folder} writable'} and rerun the same command"
    if isinstance(error, (ConnectionError, EOFError)) or (
        isinstance(error, RuntimeError) and ("DataLoader worker" in reason or "Pin memory thread" in reason)
    ):  # whichever the training process meets first
        if "too many open files" in reason.lower() or "received 0 items of ancdata" in reason:
            return "too many open files; raise the limit (ulimit -n 4096) or lower data.workers"
        if "shared memory" in reason or "Bus error" in reason:
            return (
                "loader workers need more shared memory; start the container with --shm-size=8g, or write "
                "data.workers=0, and rerun the same command"
            )
        return f"a loader worker was killed ({reason}); out of memory? Lower data.workers and rerun the same command"
    return None


def _dump_batch(error: NonFiniteLossError, run: Run) -> Path:
    """Write the batch behind a non-finite loss, with the images' files; returns the path."""
    report = {
        "step": error.step,
        "epoch": run.progress.epoch,
        "position": run.progress.position,
        "terms": {name: str(value) for name, value in error.terms.items()},  # JSON has no NaN
        "batch": [run.images.train.describe(int(row)) for row in error.batch.index],
    }
    path = run.folder / f"nonfinite-rank{run.ranks.rank}.json"
    path.write_text(json.dumps(report, indent=2), encoding="utf-8")
    return path
