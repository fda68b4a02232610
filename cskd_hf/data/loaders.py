"""Data loaders: whole batches from worker processes, in the order of their keys."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.buffers import AVAILABLE, Buffers, SharedBatches
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import Draw
from cskd_hf.errors import UserError

MAX_WORKERS = 16  # more never fed a device better here, and each takes memory
PREFETCH = 2  # batches that a worker prepares ahead, torch's `prefetch_factor`
SLOTS = PREFETCH + 3  # per worker: the current batch, the last one and a spare; unused slots cost nothing


def available_cores() -> int:
    """Cores that this process may use, by its CPU affinity and its cgroup's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # Linux only
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no limit
        pass
    return cores


def count_workers(workers: int | Literal["auto"]) -> int:
    """`data.workers` as a number; "auto" is this rank's share of the node's cores."""
    if workers != "auto":
        return workers
    local_ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return min(MAX_WORKERS, max(1, available_cores() // local_ranks))


def batch_loader(
    images: PairedImages,
    batches: GlobalBatches | Sequence[list[Draw]],
    workers: int,
    pin_memory: bool,
    persistent: bool,
    worker_init: Any,
) -> DataLoader[Any]:
    """A loader that yields a `Batch` for each list of keys in `batches`, read again at each iteration.

    Args:
        workers: processes; 0 loads in this thread.
        pin_memory: allow asynchronous copies to the device.
        persistent: reuse the processes from epoch to epoch.
        worker_init: called in each process with its id.
    """
    dataset: PairedImages | SharedBatches = images
    first = next(iter(batches), None)  # no batch is larger
    # Slots belong to worker ids: only persistent workers guarantee that no two iterations run at once.
    if workers > 0:
        _check_semaphores()
    if workers > 0 and persistent and first and AVAILABLE:
        buffers = Buffers(SLOTS * workers, math.prod(images.shape(list(first))))  # at the largest size, the transform's
        dataset = SharedBatches(images, buffers, SLOTS)
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_whole_batch,
        num_workers=workers,
        persistent_workers=persistent and workers > 0,
        prefetch_factor=PREFETCH if workers > 0 else None,
        pin_memory=pin_memory,
        # The loader draws an unused seed for its workers; not from the stream that dropout draws from.
        generator=torch.Generator(),
        worker_init_fn=worker_init,
    )


def _check_semaphores() -> None:
    """Raises UserError if /dev/shm, where the semaphores of queues to workers lie, is missing, full or read-only."""
    try:
        multiprocessing.Lock()
    except OSError as error:
        raise UserError(
            f"data.workers: worker processes need a writable /dev/shm ({error}); start the container with "
            "--shm-size=1g, or write data.workers=0"
        ) from None


def _whole_batch(batch: Any) -> Any:
    return batch


@contextmanager
def workers_ended(loading: Any) -> Iterator[None]:
    """Stop a loader's workers on leaving the block, however it is left.

    When the garbage collector frees a loader in a reference cycle, the queues that tell its workers to stop may be
    closed already; torch then waits five seconds, and a minute for workers that ignore signals.

    Args:
        loading: a loader with persistent workers, or an iterator of one without; neither needs to have workers.
    """
    try:
        yield
    finally:
        # torch has no public API for this
        iterator = loading._iterator if isinstance(loading, DataLoader) else loading
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
        if isinstance(loading, DataLoader):
            loading._iterator = None  # the next iteration starts new workers


def ignore_stop_signals(_: int) -> None:
    """A loader's `worker_init`: a signal to the whole process group leaves it to the training process to stop.

    The training process itself ends a stuck worker with SIGTERM, so that allows one more minute.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(60))
