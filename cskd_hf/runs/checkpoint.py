"""Atomic checkpoints with checksums: written to a partial folder, synced, renamed; only then is the oldest deleted."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cskd_hf.errors import UserError, one_line
from cskd_hf.files import sha256, sync, write_tensors
from cskd_hf.models.memory import memory_shapes, scatter_memories
from cskd_hf.runs.checkpoint_folders import STATE, list_checkpoints, state_sha256
from cskd_hf.runs.progress import Progress

WEIGHTS, AVERAGE, MEMORIES = "model.safetensors", "ema.safetensors", "memories.safetensors"
BEST, OPTIMIZER = "best.safetensors", "optimizer.pt"


class CheckpointError(OSError):
    """A checkpoint could not be written; earlier ones are intact."""


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: Any,
    scaler: Any,
    progress: Progress,
    recipe_hash: str,
    keep: int,
    ema: nn.Module | None = None,
    memories: Mapping[str, Tensor] | None = None,
    class_names: Sequence[str] | None = None,
    best: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `folder/step-00001234` and delete all but the newest `keep` checkpoints. Call it on one rank.

    Args:
        module: what `method.build` returned, unwrapped.
        ema: the moving average of the exported model, if the run has one.
        memories: from `gather_memories`, which every rank calls.
        class_names: in label order, for predictions with the checkpoint.
        best: weights of the best epoch so far, if the run selects one.

    Raises:
        CheckpointError: the disk is full or the folder not writable; nothing of the attempt is left.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".partial-{final.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)  # left by a kill
        partial.mkdir(parents=True)
        averages = {} if ema is None else ema.state_dict()
        weights = {WEIGHTS: module.state_dict(), AVERAGE: averages, MEMORIES: memories, BEST: best}
        for name, tensors in weights.items():
            if tensors:
                write_tensors(partial / name, tensors, {"format": "pt"})
        scaler_state = None if scaler is None else scaler.state_dict()
        # Through memory: torch reports a full disk as an internal error.
        content = io.BytesIO()
        torch.save({"optimizer": optimizer.state_dict(), "scaler": scaler_state}, content)
        (partial / OPTIMIZER).write_bytes(content.getbuffer())
        state: dict[str, Any] = {
            "recipe_hash": recipe_hash,
            "optimizer": _class_name(optimizer),
            "progress": dataclasses.asdict(progress),
            "class_names": None if class_names is None else list(class_names),
            "sha256": {file.name: sha256(file) for file in sorted(partial.iterdir())},
        }
        state["sha256"][STATE] = state_sha256(state)
        (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
        for file in partial.iterdir():
            sync(file)
        sync(partial)
        shutil.rmtree(final, ignore_errors=True)  # a forced resume may reach this step again
        os.rename(partial, final)
        sync(folder)
        _prune(folder, final, keep)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = one_line(error)
        failed = CheckpointError(f"the checkpoint of step {progress.step} could not be written: {reason}")
        failed.errno = error.errno
        raise failed from error
    return final


def _prune(folder: Path, newest: Path, keep: int) -> None:
    checkpoints = list_checkpoints(folder)
    place = checkpoints.index(newest)
    # Later ones were skipped as damaged when the run resumed; they must not crowd out new ones.
    for checkpoint in checkpoints[: place + 1][:-keep] + checkpoints[place + 1 :]:
        shutil.rmtree(checkpoint)


def load_checkpoint(path: Path, module: nn.Module, optimizer: Any, scaler: Any) -> Progress:
    """Load a checkpoint into the unwrapped module and its memories, the optimizer and the scaler; returns its progress.

    Settings of the optimizer stay as constructed: a forced resume may have changed the recipe.

    Raises:
        UserError: the checkpoint is of another network, method or optimizer, or of another number of images where
            each has a memory.
    """
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    weights = load_file(path / WEIGHTS)
    remembered = load_file(path / MEMORIES) if MEMORIES in state["sha256"] else {}
    training = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    misfit = _misfit(state, _shapes(weights) | _shapes(remembered), training["optimizer"], module, optimizer)
    if misfit:
        raise UserError(
            f"run.output_dir: the recipe does not fit {path}: {misfit} in the recipe; name another folder, or restore "
            "the model, the method and the optimizer"
        )
    module.load_state_dict(weights)
    scatter_memories(module, remembered)
    settings = [dict(group) for group in optimizer.param_groups]
    for group, constructed in zip(training["optimizer"]["param_groups"], settings, strict=True):
        # `load_state_dict` acts on these: without them it would bring back the kernel of the run that saved.
        group.update({key: constructed[key] for key in ("foreach", "fused") if key in constructed})
    optimizer.load_state_dict(training["optimizer"])
    for group, constructed in zip(optimizer.param_groups, settings, strict=True):
        # The other keys of a group may be state.
        keys = ("lr", "momentum", "nesterov", "weight_decay", "betas", "eps", "caution")
        group.update({key: constructed[key] for key in keys if key in constructed})
    for parameter, tensors in optimizer.state.items():
        for name, value in tensors.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                # Laid out like the parameter: fused kernels ignore strides, and `run.channels_last` may have changed.
                tensors[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if scaler is not None and training["scaler"] is not None:
        scaler.load_state_dict(training["scaler"])
    progress = Progress(**state["progress"])
    progress.skipped = {int(row): reason for row, reason in progress.skipped.items()}  # JSON keys are strings
    return progress


def check_epochs(progress: Progress, num_epochs: int, checkpoint: Path) -> None:
    """Reject a recipe whose training would have ended before the checkpoint.

    Raises:
        UserError: naming both numbers of epochs.
    """
    if progress.epoch > num_epochs:
        raise UserError(
            f"scheduler.num_epochs: read {num_epochs} in all, but {checkpoint} was trained for {progress.epoch}; write "
            "more, or name another run.output_dir"
        )


def load_average(path: Path, ema: nn.Module) -> None:
    """Load a checkpoint's moving average; without one, as when a forced resume turns it on, do nothing."""
    if (path / AVERAGE).is_file():
        ema.load_state_dict(load_file(path / AVERAGE))


def load_best(path: Path) -> dict[str, Tensor]:
    """A checkpoint's weights of the best epoch; none if the run that saved it selected none."""
    return load_file(path / BEST) if (path / BEST).is_file() else {}


def _misfit(
    state: Mapping[str, Any], shapes: dict[str, Any], saved: Mapping[str, Any], module: nn.Module, optimizer: Any
) -> str | None:
    """The first thing in which a checkpoint differs from what is to be trained."""
    built = _shapes(module.state_dict()) | memory_shapes(module)
    pairs = [(name, shapes.get(name, "absent"), built.get(name, "absent")) for name in (*built, *shapes)]
    kind = _class_name(optimizer)
    pairs.append(("optimizer", state["optimizer"], kind))
    there, here = (
        [len(group["params"]) for group in groups] for groups in (saved["param_groups"], optimizer.param_groups)
    )
    pairs.append(("the number of parameters of each optimizer group", there, here))
    return next((f"{name} is {there} there and {here}" for name, there, here in pairs if there != here), None)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _class_name(optimizer: Any) -> str:
    """Whose state it is: the class below Accelerate's wrapper, and below Lookahead if that is it."""
    optimizer = getattr(optimizer, "optimizer", optimizer)
    base = getattr(optimizer, "_base_optimizer", None)
    return type(optimizer).__name__ + ("" if base is None else f" of {type(base).__name__}")
