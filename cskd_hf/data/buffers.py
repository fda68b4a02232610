"""Shared memory for batches, reused as soon as no tensor refers to the batch in it.

A batch is tens of megabytes. In fresh memory the kernel zeroes it page by page and reclaims it afterwards, and a tensor
that torch sends between processes is mapped again each time: together a sixth of the cost of an image from a smaller
copy (scripts/bench/README.md). Here the pages stay mapped, and a worker sends only the slot that holds its batch.
"""

from __future__ import annotations

import itertools
import os
import sys
import weakref
from collections.abc import Iterable
from math import prod
from multiprocessing.heap import Arena

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cskd_hf.batch import Batch
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import Draw

_numbers = itertools.count()
_buffers: weakref.WeakValueDictionary[int, Buffers] = weakref.WeakValueDictionary()  # of this process, by number


class Buffers:
    """`count` slots of `num_bytes` each, in memory shared with the processes that this one starts.

    A worker acquires a slot and fills it; the process that reads it releases it. Untouched slots use no memory.
    """

    def __init__(self, count: int, num_bytes: int) -> None:
        self.count, self.num_bytes, self.number = count, num_bytes, next(_numbers)
        self._memory, self._in_use = _shared_memory(count * num_bytes), _shared_memory(count)
        _buffers[self.number] = self

    def acquire(self, slots: Iterable[int]) -> int | None:
        """Reserve the first free one of these slots, or None. No other process may acquire from them meanwhile."""
        in_use = self._in_use.buffer
        slot = next((slot for slot in slots if not in_use[slot]), None)
        if slot is not None:
            in_use[slot] = 1
        return slot

    def release(self, slot: int) -> None:
        self._in_use.buffer[slot] = 0

    def borrow(self, slot: int) -> Tensor:
        """(num_bytes,) uint8 view of an acquired slot, which is released when no tensor refers to it any more."""
        array = self._array(slot)
        # The tensor refers to the array, and the finalizer to these buffers: neither is freed before the tensor.
        weakref.finalize(array, self.release, slot).atexit = False
        return torch.from_numpy(array)

    def view(self, slot: int) -> Tensor:
        """(num_bytes,) uint8 view of a slot that another process will release."""
        return torch.from_numpy(self._array(slot))

    def _array(self, slot: int) -> np.ndarray:
        return np.frombuffer(self._memory.buffer, np.uint8, self.num_bytes, slot * self.num_bytes)


AVAILABLE = sys.platform == "linux"  # for memfd_create; elsewhere torch sends the batches


def _shared_memory(num_bytes: int) -> Arena:
    """Zeros in an unnamed file in memory, not in /dev/shm: Docker gives that 64 MB, less than a batch of ImageNet."""
    file = os.memfd_create("cskd_hf")
    os.ftruncate(file, num_bytes)
    arena = Arena(num_bytes, file)  # of multiprocessing.heap: pickling it passes the file, not the bytes
    weakref.finalize(arena, os.close, file)
    return arena


class SentBatch:
    """A batch on its way from a worker; unpickling returns the `Batch`.

    Its pixels stay in the slot, or without one go through the worker's pipe, not /dev/shm, which torch would use.
    """

    def __init__(self, batch: Batch, slot: int | None = None, buffers: Buffers | None = None) -> None:
        self.batch, self.slot, self.buffers = batch, slot, buffers

    def __reduce__(self) -> tuple[object, ...]:
        images, target, index, *rest = self.batch
        pixels = images.permute(0, 2, 3, 1)
        source = pixels.numpy() if self.buffers is None else (self.buffers.number, self.slot, pixels.shape)
        # Arrays of some hundred bytes: as tensors, each would be a file to pass on and map.
        return _received, (source, target.numpy(), index.numpy(), *rest)


def _received(
    source: np.ndarray | tuple[int, int, tuple[int, ...]], target: np.ndarray, index: np.ndarray, *rest: object
) -> Batch:
    if isinstance(source, tuple):
        number, slot, shape = source
        pixels = _buffers[number].borrow(slot)[: prod(shape)].view(shape)
    else:
        pixels = torch.from_numpy(source)
    return Batch(pixels.permute(0, 3, 1, 2), torch.from_numpy(target), torch.from_numpy(index), *rest)  # type: ignore[arg-type]


class SharedBatches(Dataset[Batch]):
    """The dataset of a loader's workers: whole batches, written into slots.

    Args:
        buffers: `slots_per_worker` slots for each worker, in the order of their ids.
    """

    def __init__(self, images: PairedImages, buffers: Buffers, slots_per_worker: int) -> None:
        self.images, self.buffers, self.slots_per_worker = images, buffers, slots_per_worker

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: list[Draw]) -> SentBatch:
        worker = get_worker_info()
        assert worker is not None, "not in a loader's worker"
        first = worker.id * self.slots_per_worker
        size = prod(self.images.shape(draws))
        fits = size <= self.buffers.num_bytes
        slot = self.buffers.acquire(range(first, first + self.slots_per_worker)) if fits else None
        if slot is None:  # the batch is too large, or the training process still refers to all slots
            return SentBatch(self.images.load(draws, torch.empty(size, dtype=torch.uint8)))
        memory = self.buffers.view(slot)
        try:
            batch = self.images.load(draws, memory)
        except BaseException:
            self.buffers.release(slot)
            raise
        if batch.images.data_ptr() == memory.data_ptr():
            return SentBatch(batch, slot, self.buffers)
        self.buffers.release(slot)  # a copy, because samples were dropped
        return SentBatch(batch)
