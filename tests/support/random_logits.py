"""Random logits that correlate with their targets, and a NumPy softmax."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def predictions(num_images: int = 203, num_classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that correlate with the target, so that no metric is at an end of its range."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    logits = 2 * torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), target] += 1.5
    return logits, target


def numpy_softmax(logits: Tensor) -> np.ndarray:
    z = logits.numpy().astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)
