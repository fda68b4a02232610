"""Checkpoints, complete or absent, never half: written aside, synced, renamed, and only then the old one goes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from cskd_hf.engine.loop import Progress

WEIGHTS, AVERAGE, OPTIMIZER, STATE = "model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: Any,
    scaler: Any,
    progress: Progress,
    recipe_hash: str,
    keep: int,
    ema: nn.Module | None = None,
) -> Path:
    """Write `folder/step-00001234` and remove all but the newest `keep`. Call it in one process.

    Args:
        module: what `method.build` returned, unwrapped.
        optimizer, scaler: anything with a `state_dict`; scaler may be None.
        ema: the module's running average, where one is kept.
    """
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".partial-{final.name}"
    shutil.rmtree(partial, ignore_errors=True)  # left by a kill
    partial.mkdir(parents=True)
    for name, source in ((WEIGHTS, module), (AVERAGE, ema)):
        if source is not None:
            # Clones: safetensors refuses tensors that share memory or lie channels_last.
            tensors = {key: value.detach().cpu().contiguous().clone() for key, value in source.state_dict().items()}
            # Not `save_file`, whose files only their owner may read, whatever the umask.
            (partial / name).write_bytes(save(tensors, metadata={"format": "pt"}))
    torch.save(
        {"optimizer": optimizer.state_dict(), "scaler": None if scaler is None else scaler.state_dict()},
        partial / OPTIMIZER,
    )
    state: dict[str, Any] = {
        "recipe_hash": recipe_hash,
        "progress": dataclasses.asdict(progress),
        "sha256": {file.name: _sha256(file) for file in sorted(partial.iterdir())},
    }
    state["sha256"][STATE] = _state_sha256(state)
    (partial / STATE).write_text(json.dumps(state), encoding="utf-8")
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    shutil.rmtree(final, ignore_errors=True)  # a forced resume may pass this step again
    os.rename(partial, final)
    _sync(folder)
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
            damaged = [name for name, digest in state["sha256"].items() if _sha256(path / name) != digest]
            damaged = damaged if _state_sha256(state) == written else [STATE]
        except (OSError, ValueError, KeyError) as error:
            damaged = [f"{STATE}: {error}"]
        if not damaged:
            return path
        print(f"warning: {path} is damaged ({', '.join(damaged)}); going back to the one before", file=sys.stderr)
    return None


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: Any, scaler: Any, ema: nn.Module | None = None
) -> Progress:
    """Load a checkpoint into the unwrapped module, its average, the optimizer and the scaler: where the run stood."""
    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    module.load_state_dict(load_file(path / WEIGHTS))
    if ema is not None:  # a forced resume may ask for an average that was not kept: it starts from here
        ema.load_state_dict(load_file(path / (AVERAGE if AVERAGE in state["sha256"] else WEIGHTS)))
    training = torch.load(path / OPTIMIZER, map_location="cpu", weights_only=True)
    settings = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(training["optimizer"])
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        # After a forced resume the recipe as it is now holds; the rest of a group may be the optimizer's own state.
        group.update({key: own[key] for key in ("lr", "momentum", "weight_decay", "betas", "eps") if key in own})
    if scaler is not None and training["scaler"] is not None:
        scaler.load_state_dict(training["scaler"])
    progress = Progress(**state["progress"])
    progress.skipped = {int(row): reason for row, reason in progress.skipped.items()}
    return progress


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _state_sha256(state: dict[str, Any]) -> str:
    """Of the state before this checksum joins it."""
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
