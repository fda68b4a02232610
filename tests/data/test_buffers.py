"""Batches in memory that is used again: never while somebody looks at it, always when nobody does."""

from __future__ import annotations

import gc
import pickle
import threading
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from transform_cases import encoded

from cskd_hf.batch import Batch
from cskd_hf.data import loaders as workers_module
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.buffers import Buffers, Parcel, Parcels, room_for
from cskd_hf.data.loaders import BUFFERS, ThreadLoader, batch_loader
from cskd_hf.data.pairing import ClassPairSampler, PairedImages
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection

LABELS = np.arange(60) % 3


def paired(broken: int | None = None) -> PairedImages:
    rows = [encoded(np.full((30, 40, 3), 4 * row, np.uint8)) for row in range(len(LABELS))]
    if broken is not None:
        rows[broken] = {"bytes": b"broken", "path": None}
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    split = ImageSplit("train", dataset, LABELS, ("a", "b", "c"), np.arange(len(LABELS)))
    return PairedImages(split, Transform(TransformSection(input_size=(3, 24, 24)), is_training=True))


def loader_of(
    images: PairedImages, worker_type: Any, workers: int = 2, batch_size: int = 2, persistent: bool = True
) -> Any:
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), batch_size)
    return batch_loader(images, batches, workers, worker_type, False, persistent, worker_init=None)


def without_workers(batch_size: int = 2) -> list[Batch]:
    return list(loader_of(paired(), "process", 0, batch_size))


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(mine, its) for mine, its in zip(one[:3], other[:3], strict=True))


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_thirty_batches_lie_in_a_few_places_and_are_those_of_no_worker(worker_type):
    places = set()
    loader = loader_of(paired(), worker_type)
    for _ in range(2):
        for batch, expected in zip(loader, without_workers(), strict=True):
            assert same(batch, expected)
            places.add(batch.images.data_ptr())
    assert 1 < len(places) <= 2 * BUFFERS


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_who_holds_every_batch_sees_none_change(worker_type):
    held = list(loader_of(paired(), worker_type))
    assert len(held) == 30
    assert len({batch.images.data_ptr() for batch in held}) == 30
    assert all(same(batch, expected) for batch, expected in zip(held, without_workers(), strict=True))


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_two_iterations_at_a_time_do_not_meet(worker_type):
    """Workers of one number in two iterations would share their places: without persistence there are none."""
    loader = loader_of(paired(), worker_type, persistent=False)
    if worker_type == "process":
        assert isinstance(loader.dataset, PairedImages)
        assert isinstance(loader_of(paired(), worker_type).dataset, Parcels)
    for one, other, expected in zip(loader, loader, without_workers(), strict=True):
        assert same(one, expected)
        assert same(other, expected)


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_a_part_of_a_batch_holds_its_place_and_outlives_the_loader(worker_type):
    loader = loader_of(paired(), worker_type)
    parts = [batch.images[1:2, :, 3:] for batch in loader]
    del loader
    gc.collect()
    others = list(loader_of(paired(), worker_type))
    assert len(others) == 30
    for part, expected in zip(parts, without_workers(), strict=True):
        assert torch.equal(part, expected.images[1:2, :, 3:])


@pytest.mark.parametrize("worker_type", ["process", "thread"])
def test_who_leaves_off_and_starts_again_finds_places(worker_type, monkeypatch):
    made = []
    monkeypatch.setattr(
        workers_module, "Buffers", lambda *size, shared: made.append(Buffers(*size, shared)) or made[-1]
    )
    loader = loader_of(paired(), worker_type)
    for _ in range(3):
        arriving = iter(loader)
        assert same(next(arriving), without_workers()[0])
        del arriving
    assert len(list(loader)) == 30
    gc.collect()
    (buffers,) = made
    assert len(free_places(buffers)) == buffers.count


def free_places(buffers: Buffers) -> list[int]:
    found = []
    while (place := buffers.take(range(buffers.count))) is not None:
        found.append(place)
    for place in found:
        buffers.free(place)
    return found


@pytest.mark.parametrize("shared", [True, False])
def test_a_place_is_free_again_when_nobody_looks_at_any_part_of_it(shared):
    buffers = Buffers(2, 12, shared)
    place = buffers.take(range(2))
    assert place == 0
    whole = buffers.borrow(place)
    view = whole[2:8].view(2, 3)
    view.fill_(7)
    del whole
    gc.collect()
    assert buffers.take(range(1)) is None
    assert buffers.look(0)[2:8].tolist() == [7] * 6
    array = view.numpy()
    del view
    assert buffers.take(range(1)) is None
    del array
    assert buffers.take(range(2)) == 0
    assert buffers.take(range(2)) == 1
    assert buffers.take(range(2)) is None


@pytest.mark.parametrize("shared", [True, False])
def test_buffers_live_as_long_as_a_tensor_in_them(shared):
    buffers = Buffers(1, 1000, shared)
    kept = buffers.borrow(buffers.take(range(1)) or 0)
    kept.fill_(3)
    del buffers
    gc.collect()
    others = [Buffers(1, 1000, shared) for _ in range(20)]
    for other in others:
        other.look(0).fill_(9)
    assert kept.tolist() == [3] * 1000


def test_threads_never_take_the_same_place():
    buffers, taken = Buffers(400, 1, shared=False), []
    start = threading.Barrier(8)

    def take() -> None:
        start.wait()
        while (place := buffers.take(range(400))) is not None:
            taken.append(place)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(400))


def test_processes_that_inherit_nothing_are_sent_the_memory_itself():
    """Pickled as it is for a process that is spawned."""
    buffers = Buffers(3, 5, shared=True)
    sent = pickle.loads(ForkingPickler.dumps(buffers))
    assert sent.take([2]) == 2
    sent.look(2).fill_(7)
    assert buffers.look(2).tolist() == [7] * 5
    assert buffers.take([2]) is None
    buffers.free(2)
    assert sent.take([0, 2]) == 0
    assert sent.take([0, 2]) == 2


class Worker:
    """Stands in for `torch.utils.data.get_worker_info`'s."""

    id = 1


@pytest.fixture
def second_worker(monkeypatch):
    monkeypatch.setattr("cskd_hf.data.buffers.get_worker_info", Worker)


def keys(count: int) -> list[Any]:
    return next(iter(GlobalBatches(ClassPairSampler(LABELS, seed=5), count)))


@pytest.mark.usefixtures("second_worker")
def test_a_worker_takes_its_own_places_only_and_fresh_memory_when_they_are_held():
    images = paired()
    buffers = Buffers(4, 2 * 2 * 24 * 24 * 3, shared=True)
    parcels = Parcels(images, buffers, each=2)
    expected = images.load(keys(2))
    sent = [parcels.__getitems__(keys(2)) for _ in range(3)]
    assert [parcel.place for parcel in sent[:2] if isinstance(parcel, Parcel)] == [2, 3]
    assert isinstance(sent[2], Batch)
    assert same(sent[2], expected)
    assert all(same(parcel.batch, expected) for parcel in sent[:2] if isinstance(parcel, Parcel))


@pytest.mark.usefixtures("second_worker")
def test_a_batch_too_large_for_a_place_or_that_fails_leaves_it_free():
    images = paired(broken=7)
    buffers = Buffers(2, 2 * 2 * 24 * 24 * 3, shared=True)
    parcels = Parcels(images, buffers, each=1)
    large = parcels.__getitems__([key for key in keys(20) if 7 not in key.indices])
    assert isinstance(large, Batch)
    assert free_places(buffers) == [0, 1]
    with pytest.raises(UserError, match="row 7"):
        parcels.__getitems__([key for key in keys(60) if 7 in key.indices][:1])
    assert free_places(buffers) == [0, 1]


@pytest.mark.parametrize(("free", "distinct"), [(2 * 2 * 6912, 4), (2 * 6912, 2), (0, 0)])
def test_little_shared_memory_means_fewer_places_and_the_same_batches(monkeypatch, free, distinct):
    made = []
    monkeypatch.setattr(
        workers_module, "Buffers", lambda *size, shared: made.append(Buffers(*size, shared)) or made[-1]
    )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free + 100))
    found = list(loader_of(paired(), "process"))
    assert [buffers.count for buffers in made] == [distinct] * bool(distinct)
    assert all(same(batch, expected) for batch, expected in zip(found, without_workers(), strict=True))


def no_such_folder(_: str) -> None:
    raise FileNotFoundError


def test_where_shared_memory_would_be_a_file_on_a_disk_there_are_no_places(monkeypatch):
    assert room_for(2, 1000) > 0
    monkeypatch.setattr("shutil.disk_usage", no_such_folder)
    assert room_for(2, 1000) == 0


def test_threads_whose_batch_fails_leave_its_place_free():
    loader = loader_of(paired(broken=7), "thread", batch_size=1)
    assert isinstance(loader, ThreadLoader)
    with pytest.raises(UserError, match="row 7"):
        list(loader)
    gc.collect()
    assert len(free_places(loader._buffers)) == loader._buffers.count
