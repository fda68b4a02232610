"""Copy a batch to the device; on CUDA, on a separate stream."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def to_device(part: Tensor, device: torch.device) -> Tensor:
    """Copy one tensor of a batch to the device.

    CUDA copies from pinned memory asynchronously, overlapping the queued work. Elsewhere the copy is synchronous: the
    loader would overwrite the batch under an asynchronous one.
    """
    if device.type != "cuda":
        return part.to(device)
    work, copies = torch.cuda.current_stream(device), _copy_stream(device)
    with torch.cuda.stream(copies):
        there = part.to(device, non_blocking=True)
    work.wait_stream(copies)
    there.record_stream(work)  # else the allocator reuses its memory when the host drops the tensor
    return there


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)
