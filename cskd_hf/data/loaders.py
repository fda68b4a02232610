"""Who loads the batches: processes, or threads of this one; the batches are the same, and come in the same order."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cskd_hf.data.buffers import Buffers, Parcels, room_for
from cskd_hf.data.pairing import Draw, PairedImages, PairingCollator

# More than this many have not been seen to feed a device better, and each takes memory.
MOST_WORKERS = 16
AHEAD = 2  # batches a worker has ready or in the making, as torch's `prefetch_factor`
BUFFERS = AHEAD + 3  # of a worker: one that is trained on, one that was, and one more; those not needed cost nothing


class KeyBatches(Protocol):
    """Batches of keys, anew at each iteration."""

    def __iter__(self) -> Iterator[list[Draw]]: ...

    def __len__(self) -> int: ...


def available_cores() -> int:
    """Cores that this process may use: its affinity, and the share of them that its control group is allowed."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux can say; elsewhere the machine's
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return cores


def count_workers(workers: int | Literal["auto"]) -> int:
    """`data.workers` as a number; auto is this process's share of the node's cores."""
    if workers != "auto":
        return workers
    return min(MOST_WORKERS, max(1, available_cores() // _processes_here()))


def _processes_here() -> int:
    """Training processes on this machine."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def batch_loader(
    images: PairedImages,
    batches: KeyBatches | Sequence[list[Draw]],
    workers: int,
    pin_memory: bool,
    persistent: bool,
    worker_init: Any,
) -> DataLoader[Any]:
    """A loader whose iteration gives the batches of `batches`, which may start elsewhere each time.

    Args:
        workers: 0 loads in this thread.
        pin_memory: for copies to the device that wait for nothing.
        persistent: processes outlive an epoch.
        worker_init: called in each process with its number.
    """
    dataset: PairedImages | Parcels = images
    first = next(iter(batches), None)  # than which no batch is larger
    # Of a loader whose processes persist there is one iteration at a time: a worker's places are its alone.
    if workers > 0 and persistent and first:
        num_bytes = math.prod(images.shape(first))
        each = min(BUFFERS, room_for(_processes_here() * workers, num_bytes))
        if each:
            dataset = Parcels(images, Buffers(each * workers, num_bytes, shared=True), each)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=PairingCollator(),
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        prefetch_factor=AHEAD if workers > 0 else None,
        pin_memory=pin_memory,
        # The loader draws a seed for its workers, which nothing here uses: not from the stream that dropout draws from.
        generator=torch.Generator(),
        worker_init_fn=worker_init,
    )


@contextmanager
def workers_ended(loading: Any) -> Iterator[None]:
    """End a loader's processes when the block is left, however it is left.

    Freed with a cycle of references, torch's loader may find the queues closed by which it tells its processes to end:
    it then waits five seconds, and for processes that outlive signals a minute.

    Args:
        loading: a loader whose processes persist, or an iterator of one whose do not; without any nothing is to do.
    """
    try:
        yield
    finally:
        # torch has no public names for these
        iterator = loading._iterator if isinstance(loading, DataLoader) else loading
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
        if isinstance(loading, DataLoader):
            loading._iterator = None  # what iterates it again starts new processes


def outlive_signals(_: int) -> None:
    """For a loader's workers: whoever signals the whole process group wants the training process to stop in peace.

    SIGTERM is also how the training process ends a worker that does not end itself, so it leaves a minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
