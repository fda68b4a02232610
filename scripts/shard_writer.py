"""Write the images of a dataset in Arrow shards, by several processes, resuming after a kill.

A shard is written under a temporary name, synced and renamed. Its rows file follows, which marks it as complete: 40
bytes per image, the label as a little-endian int64 and the SHA-256 of the image's bytes. The SHA-256 of a split is that
of its rows files in order, and so does not depend on shard size, number of workers or kind of archive.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from archive_inputs import Input
from shards import Shard
from tqdm import tqdm

from cskd_hf.errors import UserError
from cskd_hf.files import sync

BATCH_IMAGES = 256
BATCH_BYTES = 4 << 20
ROW_BYTES = 40
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.int64())])

Job: TypeAlias = tuple[Shard, Path, Path, pa.Schema]  # arguments of `write_shard`


def write_shard(
    shard: Shard, target: Path, rows: Path, schema: pa.Schema, progress: Callable[[int], object] | None = None
) -> int:
    """Write a shard, then its rows file; returns `shard.num_bytes`.

    Raises:
        UserError: an image is empty; see also `Tree.reader`.
    """
    temporary, digests = target.with_name(f"{target.name}.{os.getpid()}.tmp"), bytearray()
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for images in _batches(shard.images()):
            labels, names, contents = zip(*images, strict=True)
            for label, name, content in images:
                if not content:
                    raise UserError(f"{shard.path}: {name} is empty")
                digests += label.to_bytes(8, "little") + hashlib.sha256(content).digest()
            # Arrow strings are UTF-8: other bytes in a file name become "?".
            files = [name.rsplit("/", 1)[-1].encode(errors="replace").decode() for name in names]
            column = pa.StructArray.from_arrays(
                [pa.array(contents, pa.binary()), pa.array(files, pa.string())], fields=list(IMAGE)
            )
            writer.write_batch(pa.record_batch([column, pa.array(labels, pa.int64())], schema=schema))
            if progress is not None:
                progress(sum(map(len, contents)))
    move_synced(temporary, target)
    write_file(rows, bytes(digests))
    return shard.num_bytes


def _batches(images: Iterator[tuple[int, str, bytes]]) -> Iterator[list[tuple[int, str, bytes]]]:
    batch: list[tuple[int, str, bytes]] = []
    size = 0
    for image in images:
        batch.append(image)
        size += len(image[2])
        if len(batch) == BATCH_IMAGES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def move_synced(temporary: Path, target: Path) -> None:
    """Rename a written file such that it is complete or absent after a power cut, too."""
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def write_file(target: Path, content: bytes) -> None:
    """Complete or absent, as `move_synced`."""
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    move_synced(temporary, target)


def rows_file(partial: Path, split: str, number: int) -> Path:
    return partial / "rows" / f"{split}-{number:05d}"


def write_shards(
    splits: Mapping[str, Sequence[Shard]], partial: Path, schema: pa.Schema, archives: Sequence[Input], workers: int
) -> None:
    """Write the shards that are not complete yet, and compute the SHA-256 of the archives.

    Args:
        partial: folder of the splits' folders and of the rows files.
        workers: processes that write; 0 writes in threads of this one.

    Raises:
        UserError: see `write_shard`; or a worker was killed.
    """
    (partial / "rows").mkdir(exist_ok=True)
    jobs = []
    total = sum(shard.num_bytes for shards in splits.values() for shard in shards)
    with tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="writing", disable=None) as bar:
        for split, shards in splits.items():
            (partial / split).mkdir(exist_ok=True)
            for number, shard in enumerate(shards):
                target = partial / split / f"data-{number:05d}-of-{len(shards):05d}.arrow"
                rows = rows_file(partial, split, number)
                if rows.is_file() and target.is_file():
                    bar.update(shard.num_bytes)
                else:
                    jobs.append((shard, target, rows, schema))
        if workers == 0:
            _write_in_threads(jobs, archives, bar)
        else:
            _write_in_processes(jobs, archives, workers, bar)


def _write_in_threads(jobs: Sequence[Job], archives: Sequence[Input], bar: Any) -> None:
    with ThreadPoolExecutor(3) as threads:  # reading, hashing and syncing release the GIL
        futures: list[Future[Any]] = [threads.submit(archive.advance) for archive in archives]
        futures += [threads.submit(write_shard, *job, progress=bar.update) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _write_in_processes(jobs: Sequence[Job], archives: Sequence[Input], workers: int, bar: Any) -> None:
    """Hash the archives just ahead of the workers, which then find what they read in the page cache."""
    by_path = {archive.path: archive for archive in archives}
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_die_with_parent) as processes:
        running: set[Future[int]] = set()
        try:
            for job in sorted(jobs, key=lambda job: (str(job[0].path), job[0].end)):
                if job[0].path in by_path:
                    by_path[job[0].path].advance(job[0].end)
                running.add(processes.submit(write_shard, *job))
                while len(running) >= 2 * workers:
                    running = _collect(running, bar)
            while running:
                running = _collect(running, bar)
        except BaseException:
            processes.shutdown(wait=False, cancel_futures=True)
            raise


def _collect(running: set[Future[int]], bar: Any) -> set[Future[int]]:
    """Wait for a shard; returns those that are still being written."""
    done, running = wait(running, return_when=FIRST_COMPLETED)
    try:
        for future in done:
            bar.update(future.result())
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); rerun to resume") from error
    return running


def _die_with_parent() -> None:
    """Exit with the parent process, which otherwise, if killed, would leave its workers waiting for work."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
