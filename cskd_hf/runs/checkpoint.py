"""Checkpoints, complete or absent, never half: written aside, synced, renamed, and only then the old one goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cskd_hf.files import sha256, sync, write_tensors
from cskd_hf.models.memory import scatter_memories
from cskd_hf.runs.progress import Progress

WEIGHTS, AVERAGE, MEMORIES = "model.safetensors", "ema.safetensors", "memories.safetensors"
OPTIMIZER, STATE = "optimizer.pt", "state.json"


class CheckpointError(OSError):
    """A checkpoint could not be written; those before it are whole."""


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
) -> Path:
    """Write `folder/step-00001234` and remove all but the newest `keep`. Call it in one process.

    Args:
        module: what `method.build` returned, unwrapped.
        optimizer, scaler: anything with a `state_dict`; scaler may be None.
        ema: the running average of what the module exports, where one is kept.
        memories: what `gather_memories` gave, in every process; this one holds it.

    Raises:
        CheckpointError: a full disk, a folder that may not be written; nothing is left of the attempt.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".partial-{final.name}"
    try:
        return _save(final, partial, module, optimizer, scaler, progress, recipe_hash, keep, ema, memories)
    except (OSError, RuntimeError) as error:
        # torch.save tells of a full disk by a RuntimeError of its own.
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        shutil.rmtree(partial, ignore_errors=True)
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the checkpoint of step {progress.step} could not be written: {reason}") from error


def _save(
    final: Path,
    partial: Path,
    module: nn.Module,
    optimizer: Any,
    scaler: Any,
    progress: Progress,
    recipe_hash: str,
    keep: int,
    ema: nn.Module | None,
    memories: Mapping[str, Tensor] | None,
) -> Path:
    folder = final.parent
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir(parents=True)
    files = {WEIGHTS: module.state_dict(), AVERAGE: {} if ema is None else ema.state_dict(), MEMORIES: memories or {}}
    for name, tensors in files.items():
        if tensors:
            write_tensors(partial / name, tensors, {"format": "pt"})
    torch.save(
        {"optimizer": optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict()},
        partial / OPTIMIZER,
    )
    state: dict[str, Any] = {
        "recipe_hash": recipe_hash,
        "progress": dataclasses.asdict(progress),
        "sha256": {file.name: sha256(file) for file in sorted(partial.iterdir())},
    }
    state["sha256"][STATE] = _state_sha256(state)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    for file in partial.iterdir():
        sync(file)
    sync(partial)
    shutil.rmtree(final, ignore_errors=True)  # a forced resume may pass this step again
    os.rename(partial, final)
    sync(folder)
    saved = list_checkpoints(folder)
    place = saved.index(final)
    # Newer ones were passed over as damaged; kept, they would crowd out what is saved now.
    for old in saved[: place + 1][:-keep] + saved[place + 1 :]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; anything else in the folder is none of our business."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; a damaged one is named on stderr and passed over."""
    for path in reversed(list_checkpoints(folder)):
        try:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            written = state["sha256"].pop(STATE)
            damaged = [name for name, digest in state["sha256"].items() if sha256(path / name) != digest]
            damaged = damaged if _state_sha256(state) == written else [STATE]
        except (OSError, ValueError, KeyError) as error:
            damaged = [f"{STATE}: {error}"]
        if not damaged:
            return path
        print(f"warning: {path} is damaged ({', '.join(damaged)}); going back to the one before", file=sys.stderr)
    return None


def load_checkpoint(path: Path, module: nn.Module, optimizer: Any, scaler: Any) -> Progress:
    """Load a checkpoint into the unwrapped module and its memories, the optimizer, the scaler: where the run stood."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    module.load_state_dict(load_file(path / WEIGHTS))
    if MEMORIES in state["sha256"]:
        scatter_memories(module, load_file(path / MEMORIES))
    training = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    settings = [dict(group) for group in optimizer.param_groups]
    for group, own in zip(training["optimizer"]["param_groups"], settings, strict=True):
        # Which kernel updates is no state: a checkpoint from before it was chosen would keep the old one.
        group.update({key: own[key] for key in ("foreach", "fused") if key in own})
    optimizer.load_state_dict(training["optimizer"])
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        # After a forced resume the recipe as it is now holds; the rest of a group may be the optimizer's own state.
        group.update({key: own[key] for key in ("lr", "momentum", "weight_decay", "betas", "eps") if key in own})
    if scaler is not None and training["scaler"] is not None:
        scaler.load_state_dict(training["scaler"])
    progress = Progress(**state["progress"])
    progress.skipped = {int(row): reason for row, reason in progress.skipped.items()}
    return progress


def load_average(path: Path, ema: nn.Module) -> None:
    """Load a checkpoint's average; one that kept none, before a forced resume that asks for it, changes nothing."""
    if (path / AVERAGE).is_file():
        ema.load_state_dict(load_file(path / AVERAGE))


def _state_sha256(state: dict[str, Any]) -> str:
    """Of the state before this checksum joins it."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
