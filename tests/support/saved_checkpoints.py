"""Checkpoints of a small network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from cskd_hf.runs.checkpoint import load_checkpoint, save_checkpoint
from cskd_hf.runs.progress import Progress


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))


def step(module: nn.Module, optimizer: Any) -> None:
    module(torch.rand(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def save(folder: Path, number: int, keep: int = 5, seed: int | None = None) -> Path:
    """A checkpoint of step `number`, with the weights of `seed` (default: `number`)."""
    module = make_network(number if seed is None else seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    step(module, optimizer)
    progress = Progress(epoch=1, position=3 * number, step=number, totals={"loss": 0.1}, skipped={7: "broken"})
    return save_checkpoint(folder, module, optimizer, None, progress, "a hash", keep)


def weights_of(path: Path) -> torch.Tensor:
    module = make_network(99)
    load_checkpoint(path, module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), None)
    return module[0].weight
