"""Processes, threads and none load the same batches in the same order."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage

from cskd_hf.batch import Batch
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.loaders import ThreadLoader, available_cores, count_workers, workers_ended
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import make_loader
from cskd_hf.engine.stopping import StopRequest
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection

LABELS = np.arange(23) % 3


def jpeg(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def split_of(broken: int | None = None) -> ImageSplit:
    images = [{"bytes": b"broken" if row == broken else jpeg(row), "path": None} for row in range(len(LABELS))]
    dataset = Dataset.from_dict({"image": images}, features=Features({"image": Image(decode=False)}))
    return ImageSplit("train", dataset, LABELS, ("a", "b", "c"), np.arange(len(LABELS)))


def paired(broken: int | None = None, **settings: object) -> PairedImages:
    section = TransformSection.model_validate({"input_size": (3, 24, 24), **settings})
    return PairedImages(split_of(broken), Transform(section, is_training=True))


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def loaded(workers: int, worker_type: str, start: tuple[int, int] = (0, 0)) -> list[Batch]:
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired(), batches, workers, pin_memory=False, worker_type=worker_type)
    batches.start_epoch(*start)
    return list(loader)


@pytest.mark.parametrize(("workers", "worker_type"), [(2, "process"), (1, "thread"), (3, "thread"), (0, "thread")])
@pytest.mark.parametrize("start", [(0, 0), (3, 8)])
def test_batches_are_bit_for_bit_those_of_no_worker_from_any_start(workers, worker_type, start):
    expected, found = loaded(0, "process", start), loaded(workers, worker_type, start)
    assert len(expected) == len(found) == (6 if start == (0, 0) else 4)
    for one, other in zip(expected, found, strict=True):
        assert all(torch.equal(mine, its) for mine, its in zip(one[:3], other[:3], strict=True))
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert other.images.shape[1:] == (3, 24, 24)


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_a_loader_goes_through_epoch_after_epoch_from_where_it_is_told(worker_type):
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired(), batches, 2, pin_memory=False, worker_type=worker_type)
    for start in [(0, 0), (1, 4), (1, 0)]:
        batches.start_epoch(*start)
        assert len(loader) == (23 - start[1] + 3) // 4
        rows = [batch.index.tolist() for batch in loader]
        assert rows == [batch.index.tolist() for batch in loaded(0, "process", start)]


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_an_unreadable_image_stops_at_its_turn_with_the_same_line(worker_type):
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 1)
    keys = list(itertools.chain(*batches))
    turn = next(place for place, key in enumerate(keys) if 7 in key.indices)
    assert turn > 0
    arriving = iter(make_loader(paired(broken=7), batches, 2, pin_memory=False, worker_type=worker_type))
    for key in keys[:turn]:
        assert next(arriving).index.tolist() == list(key.indices)
    with pytest.raises(UserError, match="split 'train', row 7: unreadable image"):
        next(arriving)
    if worker_type == "process":
        # The error's frames hold it in a cycle, and collected as such it waits in vain for its processes, 20 s.
        arriving._shutdown_workers()


def test_whoever_leaves_off_early_leaves_no_thread_at_work():
    others = loading_threads()
    arriving = iter(make_loader(paired(), GlobalBatches(ClassPairSampler(LABELS), 1), 2, False, "thread"))
    next(arriving)
    own = [thread for thread in loading_threads() if thread not in others]
    assert len(own) == 2
    arriving.close()
    for thread in own:
        thread.join(30)
        assert not thread.is_alive()


class Gated(PairedImages):
    """Counts the batches begun, and lets none end before it is told to."""

    def __init__(self, images: PairedImages) -> None:
        super().__init__(images.split, images.transform)
        self.begun, self.gate = 0, threading.Event()

    def load(self, draws, room=None):
        self.begun += 1
        assert self.gate.wait(30)
        return super().load(draws, room)


def test_threads_are_only_so_far_ahead():
    images = Gated(paired())
    images.gate.set()
    arriving = iter(ThreadLoader(images, GlobalBatches(ClassPairSampler(LABELS), 1), 2, pin_memory=False))
    next(arriving)
    time.sleep(0.5)
    assert images.begun <= 5
    assert len(list(arriving)) == 22
    assert images.begun == 23


def test_a_signal_is_answered_while_the_training_thread_waits_for_a_batch():
    images = Gated(paired())
    arriving = iter(ThreadLoader(images, GlobalBatches(ClassPairSampler(LABELS), 4), 2, pin_memory=False))
    with StopRequest(Accelerator(cpu=True)) as stop:

        def ask() -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            images.gate.set()

        asking = threading.Timer(0.2, ask)
        asking.start()
        next(arriving)
        asking.join()
        assert stop.agreed()
        assert stop.reason == "SIGTERM"
    arriving.close()


def test_threads_leave_the_training_threads_own_number_of_threads_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        batches = GlobalBatches(ClassPairSampler(LABELS), 4)
        list(make_loader(paired(), batches, 2, False, "thread"))
        list(make_loader(paired(), batches, 0, False))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("setting", [{"color_jitter": 0.4}, {"auto_augment": "rand-m6"}])
def test_transforms_that_seed_the_processs_own_generators_are_refused_to_threads(setting):
    batches = GlobalBatches(ClassPairSampler(LABELS), 4)
    with pytest.raises(UserError, match=r"data\.worker_type: .*write data\.worker_type=process"):
        make_loader(paired(**setting), batches, 2, False, "thread")
    assert len(list(make_loader(paired(**setting), batches, 0, False, "thread"))) == 6


def test_auto_is_this_processs_share_of_the_nodes_cores(monkeypatch):
    cores = available_cores()
    assert cores >= 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert count_workers("auto") == min(16, cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count_workers("auto") == min(16, max(1, cores // 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert count_workers("auto") == 1
    assert [count_workers(number) for number in (0, 1, 40)] == [0, 1, 40]


def processes_of(loader: object, taken: int) -> list[multiprocessing.process.BaseProcess]:
    arriving = iter(loader)  # type: ignore[call-overload]
    for _ in range(taken):
        next(arriving)
    return multiprocessing.active_children()


@pytest.mark.parametrize("taken", [1, 6], ids=["left off early", "to the epoch's end"])
def test_a_loaders_processes_end_with_the_block_though_it_is_held(taken):
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired(), batches, 2, pin_memory=False)
    batches.start_epoch(0, 0)
    with workers_ended(loader):
        assert len(processes_of(loader, taken)) == 2
    assert multiprocessing.active_children() == []
    with workers_ended(loader):  # and it starts others when it is used again
        assert len(processes_of(loader, taken)) == 2
    assert multiprocessing.active_children() == []


def test_a_loaders_processes_end_with_the_block_that_an_error_leaves():
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired(broken=3), batches, 2, pin_memory=False)
    batches.start_epoch(0, 0)
    with pytest.raises(UserError, match="row 3") as held, workers_ended(loader):
        processes_of(loader, 6)
    assert multiprocessing.active_children() == []
    assert held.value.__traceback__ is not None


@pytest.mark.parametrize(("workers", "worker_type"), [(0, "process"), (2, "thread")])
def test_a_loader_without_processes_has_none_to_end(workers, worker_type):
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired(), batches, workers, pin_memory=False, worker_type=worker_type)
    batches.start_epoch(0, 0)
    with workers_ended(loader):
        assert processes_of(loader, 1) == []
