"""What the C libraries below torch are asked for where a CPU trains, beside processes that load its images.

Both are settings that one may know as environment variables; what the environment says already stays.
"""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's names for them, in malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def wait_briefly() -> None:
    """Have OpenMP's threads spin for a short while only when they wait; to be called before torch is imported.

    GNU's spin for milliseconds, on cores on which the loader could decode: with a network that costs little, two cores
    train half as many images again where they do not. Not to spin at all would cost every step.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, for this process to use again.

    glibc gives large blocks back to the kernel at once, and gets them again filled with zeros, page by page: of a batch
    of 100 images at 224 pixels, normalising takes 9 ms, and that 20 ms more. A device's memory has torch's own
    allocator, which keeps it anyway. Processes forked later inherit it; elsewhere than with glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl has none
        return
    for name, option, value in (("MALLOC_MMAP_MAX_", _MMAP_MAX, 0), ("MALLOC_TRIM_THRESHOLD_", _TRIM_THRESHOLD, -1)):
        if name not in os.environ:
            mallopt(option, value)
