"""Seed the global generators of Python, NumPy and torch for the length of a block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator that timm's and torchvision's transforms draw from, seeded, and put back afterwards.

    Put back because with `data.workers: 0` they are the training process's own, which dropout draws from.
    """
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerator's generators too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
