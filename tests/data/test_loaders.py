"""Loaders: the same batches in the same order with and without workers; workers exit on time."""

from __future__ import annotations

import io
import itertools
import multiprocessing

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PillowImage

from cskd_hf.batch import Batch
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.loaders import available_cores, count_workers, workers_ended
from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import ClassPairSampler
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.engine.build import make_loader
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection

LABELS = np.arange(23) % 3


def jpeg(row: int) -> bytes:
    pixels = np.random.default_rng(row).integers(0, 256, (6, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    buffer = io.BytesIO()
    PillowImage.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def paired_images(broken: int | None = None) -> PairedImages:
    rows = [{"bytes": b"broken" if row == broken else jpeg(row), "path": None} for row in range(len(LABELS))]
    dataset = Dataset.from_dict({"image": rows}, features=Features({"image": Image(decode=False)}))
    split = ImageSplit("train", dataset, LABELS, ("a", "b", "c"), np.arange(len(LABELS)))
    return PairedImages(split, Transform(TransformSection(input_size=(3, 24, 24)), is_training=True))


def load_epoch(workers: int, epoch: int, position: int) -> list[Batch]:
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired_images(), batches, workers, pin_memory=False)
    batches.start_epoch(epoch, position)
    return list(loader)


@pytest.mark.parametrize(("epoch", "position", "num_batches"), [(0, 0, 6), (3, 8, 4)])
def test_workers_load_bit_for_bit_the_batches_of_the_main_process(epoch, position, num_batches):
    in_process, with_workers = load_epoch(0, epoch, position), load_epoch(2, epoch, position)
    assert len(in_process) == len(with_workers) == num_batches
    for one, other in zip(in_process, with_workers, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one[:3], other[:3], strict=True))
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert other.images.shape[1:] == (3, 24, 24)


def test_persistent_workers_follow_the_sampler_from_epoch_to_epoch():
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired_images(), batches, 2, pin_memory=False)
    for epoch, position in [(0, 0), (1, 4), (1, 0)]:
        batches.start_epoch(epoch, position)
        assert len(loader) == (23 - position + 3) // 4
        rows = [batch.index.tolist() for batch in loader]
        assert rows == [batch.index.tolist() for batch in load_epoch(0, epoch, position)]


def test_an_unreadable_image_raises_in_its_own_batch():
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 1)
    keys = list(itertools.chain(*batches))
    position = next(number for number, key in enumerate(keys) if 7 in key.indices)
    assert position > 0
    batches.start_epoch(0)
    iterator = iter(make_loader(paired_images(broken=7), batches, 2, pin_memory=False))
    for key in keys[:position]:
        assert next(iterator).index.tolist() == list(key.indices)
    with pytest.raises(UserError, match="split 'train', row 7: unreadable image"):
        next(iterator)
    # The traceback holds the iterator in a reference cycle; garbage collection would wait 20 s for its workers.
    iterator._shutdown_workers()


def test_auto_workers_are_this_ranks_share_of_the_cores(monkeypatch):
    cores = available_cores()
    assert cores >= 1
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert count_workers("auto") == min(16, cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert count_workers("auto") == min(16, max(1, cores // 2))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1000")
    assert count_workers("auto") == 1
    assert [count_workers(number) for number in (0, 1, 40)] == [0, 1, 40]


def started_workers(loader: object, num_batches: int) -> list[multiprocessing.process.BaseProcess]:
    iterator = iter(loader)  # type: ignore[call-overload]
    for _ in range(num_batches):
        next(iterator)
    return multiprocessing.active_children()


@pytest.mark.parametrize(("workers", "num_batches"), [(2, 1), (2, 6), (0, 1)], ids=["midway", "whole epoch", "none"])
def test_workers_end_with_the_block_and_can_be_started_again(workers, num_batches):
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired_images(), batches, workers, pin_memory=False)
    for _ in range(2):
        batches.start_epoch(0)
        with workers_ended(loader):
            assert len(started_workers(loader, num_batches)) == workers
        assert multiprocessing.active_children() == []


def test_workers_end_when_an_error_leaves_the_block():
    batches = GlobalBatches(ClassPairSampler(LABELS, seed=5), 4)
    loader = make_loader(paired_images(broken=3), batches, 2, pin_memory=False)
    batches.start_epoch(0)
    with pytest.raises(UserError, match="row 3") as caught, workers_ended(loader):
        started_workers(loader, 6)
    assert multiprocessing.active_children() == []
    assert caught.value.__traceback__ is not None
