"""OpenMP, glibc and Accelerate settings for training on a CPU.

Environment variables that are already set take precedence.
"""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's names for them, in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def limit_openmp_spinning() -> None:
    """Let idle OpenMP threads spin only briefly. Call it before torch is imported.

    GNU's OpenMP spins for milliseconds on cores that loader workers could use: a short spin lets a small network on two
    cores train 1.5 times as fast. Not spinning at all would slow down every step.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def join_ranks_on_cpus() -> None:
    """Let torchrun's ranks form one group where there is no accelerator; Accelerate needs `ACCELERATE_USE_CPU`."""
    import torch

    started = os.environ.get("WORLD_SIZE", "1") != "1" and "LOCAL_RANK" in os.environ
    if started and not torch.accelerator.is_available():
        os.environ.setdefault("ACCELERATE_USE_CPU", "true")


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory instead of returning it to the kernel.

    By default it returns large blocks at once, and the kernel zeroes their pages on reuse: 20 ms for 100 images of 224
    px, which take 9 ms to normalise. Processes forked later inherit the setting. CUDA memory has torch's caching
    allocator. Does nothing without glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return
    for name, option, value in (("MALLOC_MMAP_MAX_", _MMAP_MAX, 0), ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, -1)):
        if name not in os.environ:
            mallopt(option, value)
