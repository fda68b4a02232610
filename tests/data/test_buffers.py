"""Shared batch memory: a slot is never reused while a tensor refers to it, and always afterwards."""

from __future__ import annotations

import errno
import gc
import pickle
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from transform_cases import encoded

from cskd_hf.batch import Batch
from cskd_hf.data import loaders
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.buffers import Buffers, SharedBatches
from cskd_hf.data.loaders import SLOTS, batch_loader
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ClassPairSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection

LABELS = np.arange(60) % 3
NUM_BYTES = 2 * 2 * 24 * 24 * 3  # a batch of two pairs


def paired_images(broken: int | None = None) -> PairedImages:
    rows = [encoded(np.full((30, 40, 3), 4 * row, np.uint8)) for row in range(len(LABELS))]
    if broken is not None:
        rows[broken] = {"bytes": b"broken", "path": None}
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    split = ImageSplit("train", dataset, LABELS, ("a", "b", "c"), np.arange(len(LABELS)))
    return PairedImages(split, Transform(TransformSection(input_size=(3, 24, 24)), is_training=True))


def make_loader(workers: int = 2, persistent: bool = True) -> Any:
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 2)
    return batch_loader(paired_images(), batches, workers, False, persistent, worker_init=None)


@pytest.fixture(scope="module")
def expected() -> list[Batch]:
    """Thirty batches loaded without workers."""
    return list(make_loader(workers=0))


@pytest.fixture
def created(monkeypatch) -> list[Buffers]:
    """The `Buffers` that loaders create."""
    buffers: list[Buffers] = []
    monkeypatch.setattr(loaders, "Buffers", lambda *args: buffers.append(Buffers(*args)) or buffers[-1])
    return buffers


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(left, right) for left, right in zip(one[:3], other[:3], strict=True))


def free_slots(buffers: Buffers) -> list[int]:
    free = []
    while (slot := buffers.acquire(range(buffers.count))) is not None:
        free.append(slot)
    for slot in free:
        buffers.release(slot)
    return free


def test_two_epochs_reuse_a_few_slots(expected):
    addresses, loader = set(), make_loader()
    for _ in range(2):
        loader.batch_sampler.start_epoch(0)
        for batch, reference in zip(loader, expected, strict=True):
            assert equal(batch, reference)
            addresses.add(batch.images.data_ptr())
    assert 1 < len(addresses) <= 2 * SLOTS


def test_progressive_epochs_share_the_slots_of_the_largest_and_equal_a_transform_to_their_size(created):
    sizes = {0: (12, 12), 1: (24, 24), 2: (16, 16)}  # also back to a smaller one, as on a restart

    def pixels(size: tuple[int, int]) -> PairedImages:
        settings = TransformSection(input_size=(3, *size))
        return PairedImages(paired_images().split, Transform(settings, is_training=True))

    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 2, size_of=sizes.get)
    loader = batch_loader(paired_images(), batches, 2, False, True, worker_init=None)
    for epoch, size in sizes.items():
        batches.start_epoch(epoch, position=4 * epoch)
        expected = [pixels(size).load(list(keys)) for keys in batches]
        batches.start_epoch(epoch, position=4 * epoch)
        assert len(expected) == 30 - 2 * epoch
        for batch, reference in zip(loader, expected, strict=True):
            assert batch.images.shape[2:] == size
            assert equal(batch, reference)
    assert [buffers.num_bytes for buffers in created] == [NUM_BYTES]


def test_batches_do_not_change_while_the_caller_refers_to_them(expected):
    batches = list(make_loader())
    assert len({batch.images.data_ptr() for batch in batches}) == 30
    assert all(map(equal, batches, expected))


@pytest.mark.filterwarnings("ignore:the sampler starts epoch 0 again")
def test_without_persistent_workers_there_are_no_slots_and_two_iterations_can_interleave(expected):
    """Workers of two concurrent iterations have the same ids, and so would share slots."""
    loader = make_loader(persistent=False)
    assert isinstance(loader.dataset, PairedImages)
    assert isinstance(make_loader().dataset, SharedBatches)
    for one, other, reference in zip(loader, loader, expected, strict=True):
        assert equal(one, reference)
        assert equal(other, reference)


def test_a_slice_of_a_batch_keeps_its_slot_and_outlives_the_loader(expected):
    loader = make_loader()
    slices = [batch.images[1:2, :, 3:] for batch in loader]
    del loader
    gc.collect()
    assert len(list(make_loader())) == 30
    for part, reference in zip(slices, expected, strict=True):
        assert torch.equal(part, reference.images[1:2, :, 3:])


@pytest.mark.filterwarnings("ignore:the sampler starts epoch 0 again")
def test_an_abandoned_iteration_releases_its_slots(expected, created):
    loader = make_loader()
    for _ in range(3):
        batches = iter(loader)
        assert equal(next(batches), expected[0])
        del batches
    assert len(list(loader)) == 30
    gc.collect()
    (buffers,) = created
    assert len(free_slots(buffers)) == buffers.count


def test_a_slot_is_released_with_the_last_view_of_it():
    buffers = Buffers(2, 12)
    assert buffers.acquire(range(2)) == 0
    whole = buffers.borrow(0)
    view = whole[2:8].view(2, 3)
    view.fill_(7)
    del whole
    gc.collect()
    assert buffers.acquire([0]) is None
    assert buffers.view(0)[2:8].tolist() == [7] * 6
    array = view.numpy()
    del view
    assert buffers.acquire([0]) is None
    del array
    assert [buffers.acquire(range(2)) for _ in range(3)] == [0, 1, None]


def test_buffers_live_as_long_as_a_tensor_in_them():
    buffers = Buffers(1, 1000)
    tensor = buffers.borrow(buffers.acquire([0]) or 0)
    tensor.fill_(3)
    del buffers
    gc.collect()
    others = [Buffers(1, 1000) for _ in range(20)]
    for other in others:
        other.view(0).fill_(9)
    assert tensor.tolist() == [3] * 1000


def test_pickled_buffers_refer_to_the_same_memory():
    """Buffers are pickled to reach a spawned worker."""
    buffers = Buffers(3, 5)
    copy = pickle.loads(ForkingPickler.dumps(buffers))
    assert copy.acquire([2]) == 2
    copy.view(2).fill_(7)
    assert buffers.view(2).tolist() == [7] * 5
    assert buffers.acquire([2]) is None
    buffers.release(2)
    assert [copy.acquire([0, 2]) for _ in range(2)] == [0, 2]


@pytest.fixture
def second_worker(monkeypatch):
    monkeypatch.setattr("cskd_hf.data.buffers.get_worker_info", lambda: SimpleNamespace(id=1))


def keys(count: int) -> list[Any]:
    return next(iter(GlobalBatches(ClassPairSampler(LABELS, seed=5), count)))


@pytest.mark.usefixtures("second_worker")
def test_a_worker_uses_only_its_own_slots_and_fresh_memory_when_none_is_free():
    images = paired_images()
    shared = SharedBatches(images, Buffers(4, NUM_BYTES), slots_per_worker=2)
    reference = images.load(keys(2))
    first, second, third = (shared.__getitems__(keys(2)) for _ in range(3))
    assert [batch.slot for batch in (first, second, third)] == [2, 3, None]
    assert equal(pickle.loads(pickle.dumps(third)), reference)
    assert all(equal(batch, reference) for batch in (first.batch, second.batch, third.batch))


@pytest.mark.usefixtures("second_worker")
def test_a_batch_that_is_too_large_or_fails_releases_its_slot():
    buffers = Buffers(2, NUM_BYTES)
    shared = SharedBatches(paired_images(broken=7), buffers, slots_per_worker=1)
    assert shared.__getitems__([key for key in keys(20) if 7 not in key.indices]).slot is None
    assert free_slots(buffers) == [0, 1]
    with pytest.raises(UserError, match="row 7"):
        shared.__getitems__([key for key in keys(60) if 7 in key.indices][:1])
    assert free_slots(buffers) == [0, 1]


def test_batches_need_no_dev_shm(monkeypatch, expected):
    """Neither a batch in a slot nor one for which no slot is free: Docker's 64 MB are less than a batch."""
    monkeypatch.setattr(loaders, "SLOTS", 1)
    loader = make_loader()
    batches = []
    for batch in loader:
        batches.append(batch)  # referred to, so that no slot is free again
        assert "/dev/shm" not in Path("/proc/self/maps").read_text().replace("/dev/shm/sem.", "")
    assert all(map(equal, batches, expected))


def test_a_dev_shm_that_cannot_be_written_is_a_user_error(monkeypatch):
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("multiprocessing.Lock", full)
    with pytest.raises(UserError, match=r"data\.workers: .*/dev/shm .*--shm-size=1g, or write data\.workers=0"):
        make_loader()


def test_without_memory_files_torch_sends_the_batches(monkeypatch, expected):
    monkeypatch.setattr(loaders, "AVAILABLE", False)
    loader = make_loader()
    assert isinstance(loader.dataset, PairedImages)
    assert all(map(equal, loader, expected))
