"""Memory for batches, used again as soon as nobody holds the batch that lies in it.

A batch is tens of megabytes. In fresh memory, the kernel clears it page by page and takes it back afterwards, and a
tensor that torch sends between processes is mapped anew each time: together a sixth of what an image of a small copy
costs (scripts/bench/README.md). Here the pages stay, and a message says which place a batch lies in.
"""

from __future__ import annotations

import itertools
import shutil
import threading
import weakref
from collections.abc import Iterable
from math import prod
from multiprocessing.heap import BufferWrapper
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from cskd_hf.batch import Batch
from cskd_hf.data.sampling import Draw

if TYPE_CHECKING:
    from cskd_hf.data.pairing import PairedImages

_numbers = itertools.count()
_made_here: weakref.WeakValueDictionary[int, Buffers] = weakref.WeakValueDictionary()


class Buffers:
    """Places of equal size for batches.

    A place is taken by who fills it, and freed by who last looked at it. Places that were never taken cost nothing.

    Args:
        count: of places.
        num_bytes: of each.
        shared: with the processes that this one starts; else they are this process's alone.
    """

    def __init__(self, count: int, num_bytes: int, shared: bool) -> None:
        self.count, self.num_bytes, self.number = count, num_bytes, next(_numbers)
        # What lies below multiprocessing.Array, which would write zeros everywhere: files without a name, in memory.
        memory = BufferWrapper if shared else _Private
        self._room, self._taken = memory(count * num_bytes), memory(count)
        self._taken.create_memoryview()[:count] = bytes(count)
        self._lock = threading.Lock()
        _made_here[self.number] = self

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def take(self, places: Iterable[int]) -> int | None:
        """The first free one of these places, no longer free; None: there is none.

        Threads may ask for the same places at once, processes may not.
        """
        taken = self._taken.create_memoryview()
        with self._lock:
            for place in places:
                if not taken[place]:
                    taken[place] = 1
                    return place
        return None

    def free(self, place: int) -> None:
        self._taken.create_memoryview()[place] = 0

    def borrow(self, place: int) -> Tensor:
        """(num_bytes,) uint8 of a place that is taken; it is free again when no tensor looks at it any more."""
        array = self._array(place)
        # The tensor holds the array, and what is called in the end holds these buffers.
        weakref.finalize(array, self.free, place).atexit = False
        return torch.from_numpy(array)

    def look(self, place: int) -> Tensor:
        """The same of a place that somebody else will free."""
        return torch.from_numpy(self._array(place))

    def _array(self, place: int) -> np.ndarray:
        return np.frombuffer(self._room.create_memoryview(), np.uint8, self.num_bytes, place * self.num_bytes)


class _Private:
    """As `BufferWrapper`, of this process alone."""

    def __init__(self, num_bytes: int) -> None:
        self._memory = np.empty(num_bytes, np.uint8)

    def create_memoryview(self) -> memoryview:
        return self._memory.data


def room_for(workers: int, num_bytes: int) -> int:
    """How many places of so many bytes each worker may have in shared memory; 0 where it is not Linux's /dev/shm.

    Without that, `BufferWrapper` would take a file on a disk, and every batch would be written there.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return 0
    return free // (workers * num_bytes)


class Parcel:
    """A batch on its way between processes: unpickled, it is the `Batch`, whose pixels have stayed where they were."""

    def __init__(self, buffers: Buffers, place: int, batch: Batch) -> None:
        self.buffers, self.place, self.batch = buffers, place, batch

    def __reduce__(self) -> tuple[object, ...]:
        images, target, index, *rest = self.batch
        # Numbers of some hundred bytes: as tensors, each would be a file that is passed on and mapped.
        small = target.numpy(), index.numpy()
        return _opened, (self.buffers.number, self.place, images.permute(0, 2, 3, 1).shape, *small, *rest)


def _opened(
    number: int, place: int, shape: tuple[int, ...], target: np.ndarray, index: np.ndarray, *rest: object
) -> Batch:
    pixels = _made_here[number].borrow(place)[: prod(shape)].view(shape)
    return Batch(pixels.permute(0, 3, 1, 2), torch.from_numpy(target), torch.from_numpy(index), *rest)  # type: ignore[arg-type]


class Parcels(Dataset[Batch]):
    """What a loader's processes ask for batches: filled in buffers, and sent as parcels.

    Args:
        images: batch of keys → `Batch`.
        buffers: `each` places for every process, in the order of their numbers.
    """

    def __init__(self, images: PairedImages, buffers: Buffers, each: int) -> None:
        self.images, self.buffers, self.each = images, buffers, each

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, draws: list[Draw]) -> Batch | Parcel:
        worker = get_worker_info()
        assert worker is not None, "not in a loader's process"
        place = self.buffers.take(range(worker.id * self.each, (worker.id + 1) * self.each))
        if place is None:  # whoever got the last ones holds on to them
            return self.images.load(draws)
        room = self.buffers.look(place)
        try:
            batch = self.images.load(draws, room)
        except BaseException:
            self.buffers.free(place)
            raise
        if batch.images.data_ptr() == room.data_ptr():
            return Parcel(self.buffers, place, batch)
        self.buffers.free(place)  # not all images of the batch are pixels
        return batch
