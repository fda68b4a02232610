"""Batches of CS-KD whose images are noise."""

from __future__ import annotations

import torch
from torch import Tensor

from cskd_hf.methods import Batch

NUM_CLASSES = 5


def pairs(num: int = 3, size: int = 8, target: Tensor | None = None) -> Batch:
    """[anchors | partners] of random images."""
    target = torch.randint(NUM_CLASSES, (num,)) if target is None else target
    return Batch(torch.randn(2 * num, 3, size, size), torch.cat([target, target]), torch.arange(2 * num))
