"""Copy a batch to the device, on a stream of its own where the device is CUDA."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """A part of a batch on the device.

    CUDA copies from pinned memory beside the work that is queued, and the host goes on at once. Elsewhere it waits: a
    copy under way would see the loader write the next batch.
    """
    if device.type != "cuda":
        return part.to(device)
    work, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        there = part.to(device, non_blocking=True)
    work.wait_stream(copies)
    there.record_stream(work)  # or its memory would be given away when the host is done with it
    return there


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of a device's copies."""
    return torch.cuda.Stream(device)
