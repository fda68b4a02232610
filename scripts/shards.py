"""Images → a folder that `datasets.load_from_disk` opens: written in shards, resumed after a kill, whole or absent.

Everything is written under OUT/.partial and moved into OUT when all of it is there, `dataset_dict.json` last: without
that file nothing takes OUT for a dataset. A shard is first written under a temporary name, synced and renamed; then
its rows file is, which records it as done.

A rows file holds 40 bytes an image: the label as a little-endian int64, then the SHA-256 of the image's bytes. The
SHA-256 of a split is that of its rows in order: the same for every shard size, number of workers and kind of archive.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import pyarrow as pa
from archives import Tree, index_tar
from tqdm import tqdm

from cskd_hf.errors import UserError
from cskd_hf.files import sync

BATCH_IMAGES = 256
BATCH_BYTES = 4 << 20
ROW_BYTES = 40
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("image", IMAGE), ("label", pa.int64())])

Item = TypeVar("Item")


@dataclass(frozen=True)
class Listed:
    """Images that a list names, in its order: (label, member of the tree)."""

    tree: Tree
    rows: tuple[tuple[int, str], ...]

    @property
    def path(self) -> Path:
        return self.tree.path

    @property
    def num_images(self) -> int | None:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        return sum(member.size for member in self.tree.members.values())

    @property
    def end(self) -> int:
        """How much of the archive must have been read before."""
        ends = [member.offset + member.size for member in self.tree.members.values()]
        return 0 if self.tree.kind == "folder" else max(ends, default=0)

    def images(self) -> Iterator[tuple[int, str, bytes]]:
        with self.tree.reader() as read:
            for label, name in self.rows:
                yield label, name, read(name)


class ClassTar(NamedTuple):
    """A class: a tar of its own, or inside another."""

    label: int
    path: Path
    shown: str
    start: int
    size: int


@dataclass(frozen=True)
class ClassTars:
    """Whole classes. Images by class, then file name."""

    tars: tuple[ClassTar, ...]

    @property
    def path(self) -> Path:
        return self.tars[0].path

    @property
    def num_images(self) -> int | None:
        return None

    @property
    def num_bytes(self) -> int:
        return sum(tar.size for tar in self.tars)

    @property
    def end(self) -> int:
        return max(tar.start + tar.size for tar in self.tars)

    def images(self) -> Iterator[tuple[int, str, bytes]]:
        for tar in self.tars:
            tree = index_tar(tar.path, tar.shown, tar.start, tar.size)
            with tree.reader() as read:
                for name in sorted(tree.members):
                    yield tar.label, name, read(name)


Shard = Listed | ClassTars


class Digested(Protocol):
    """An input whose SHA-256 is taken as its bytes are read."""

    path: Path

    def advance(self, end: int | None = None) -> None: ...


def even_parts(items: Sequence[Item], sizes: Sequence[int], limit: int) -> list[Sequence[Item]]:
    """Contiguous parts of about `limit` bytes each, none empty."""
    total = sum(sizes)
    num_parts = max(1, round(total / limit))
    parts: list[list[Item]] = [[] for _ in range(num_parts)]
    before = 0
    for item, size in zip(items, sizes, strict=True):
        parts[min(num_parts - 1, (2 * before + size) * num_parts // max(1, 2 * total))].append(item)
        before += size
    return [part for part in parts if part] or [[]]


def listed(tree: Tree, rows: Sequence[tuple[int, str]], shard_bytes: int) -> list[Shard]:
    """The shards of a split whose images a list names."""
    parts = even_parts(rows, [tree.members[name].size for _, name in rows], shard_bytes)
    return [Listed(tree.only(name for _, name in part), tuple(part)) for part in parts]


def write_shard(
    shard: Shard, target: Path, rows: Path, schema: pa.Schema, progress: Callable[[int], object] | None = None
) -> int:
    """Write one shard and the record that it is done; returns its size as `Shard.num_bytes` counts it.

    Raises:
        UserError: see `Tree.reader`; or an image of no bytes.
    """
    temporary, digests = target.with_name(f"{target.name}.{os.getpid()}.tmp"), bytearray()
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for images in _batches(shard.images()):
            labels, names, contents = zip(*images, strict=True)
            for label, name, content in images:
                if not content:
                    raise UserError(f"{shard.path}: {name} is empty")
                digests += label.to_bytes(8, "little") + hashlib.sha256(content).digest()
            # A file name that is not UTF-8 is stored with ?: Arrow has no other strings.
            files = [name.rsplit("/", 1)[-1].encode(errors="replace").decode() for name in names]
            column = pa.StructArray.from_arrays(
                [pa.array(contents, pa.binary()), pa.array(files, pa.string())], fields=list(IMAGE)
            )
            writer.write_batch(pa.record_batch([column, pa.array(labels, pa.int64())], schema=schema))
            if progress is not None:
                progress(sum(map(len, contents)))
    settle(temporary, target)
    put(rows, bytes(digests))
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


def settle(temporary: Path, target: Path) -> None:
    """Rename a written file, so that after a power cut too it is whole or absent."""
    sync(temporary)
    os.replace(temporary, target)
    sync(target.parent)


def put(target: Path, content: bytes) -> None:
    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    settle(temporary, target)


def rows_file(partial: Path, split: str, number: int) -> Path:
    return partial / "rows" / f"{split}-{number:05d}"


def write_shards(
    splits: dict[str, list[Shard]], partial: Path, schema: pa.Schema, inputs: Sequence[Digested], workers: int
) -> None:
    """Write what is not done yet: in this process, or, `workers` > 0, in others while this one takes the SHA-256 of the
    archives. It keeps just ahead of the workers, so that they find in memory what it has read."""
    (partial / "rows").mkdir(exist_ok=True)
    jobs = []
    total = sum(shard.num_bytes for shards in splits.values() for shard in shards)
    bar = tqdm(total=total, unit="B", unit_scale=True, unit_divisor=1024, desc="writing", disable=None)
    for split, shards in splits.items():
        (partial / split).mkdir(exist_ok=True)
        for number, shard in enumerate(shards):
            target = partial / split / f"data-{number:05d}-of-{len(shards):05d}.arrow"
            if rows_file(partial, split, number).is_file() and target.is_file():
                bar.update(shard.num_bytes)
            else:
                jobs.append((shard, target, rows_file(partial, split, number), schema))
    with bar:
        if workers == 0:
            with ThreadPoolExecutor(3) as threads:  # what takes time, reading, hashing and syncing, leaves Python
                work: list[Future[Any]] = [threads.submit(each.advance) for each in inputs]
                work += [threads.submit(write_shard, *job, progress=bar.update) for job in jobs]
                try:
                    for future in as_completed(work):
                        future.result()
                except BaseException:
                    threads.shutdown(wait=False, cancel_futures=True)
                    raise
            return
        digested = {each.path: each for each in inputs}
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_die_with_parent) as processes:
            running: set[Future[int]] = set()
            try:
                for job in sorted(jobs, key=lambda job: (str(job[0].path), job[0].end)):
                    if job[0].path in digested:
                        digested[job[0].path].advance(job[0].end)
                    running.add(processes.submit(write_shard, *job))
                    while len(running) >= 2 * workers:
                        running = _collect(running, bar)
                while running:
                    running = _collect(running, bar)
            except BaseException:
                processes.shutdown(wait=False, cancel_futures=True)
                raise


def _collect(running: set[Future[int]], bar: Any) -> set[Future[int]]:
    done, left = wait(running, return_when=FIRST_COMPLETED)
    try:
        for future in done:
            bar.update(future.result())
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed (out of memory?); run again to go on") from error
    return left


def _die_with_parent() -> None:
    """A worker whose parent is killed would otherwise wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
