"""Seed the global generators of Python, NumPy and torch inside a block."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed every generator that timm's and torchvision's transforms draw from; restore their states on exit.

    With `data.workers: 0` these are the training process's own generators, which dropout draws from too.
    """
    import numpy as np  # here, not at module level: ground modules import nothing heavy
    import torch

    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerators' generators too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)
