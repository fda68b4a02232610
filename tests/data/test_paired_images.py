"""PairedImages and PairingCollator: layout, reads and augmentation of a batch."""

from __future__ import annotations

import pytest
import torch
from pairing_cases import DENSE, TRANSFORM, assert_equal, epoch_of, load, picture, split_of
from torch.utils.data import DataLoader

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.pairing import PairedImages, PairingCollator
from cskd_hf.data.sampling import ClassPairSampler, ImageSampler
from cskd_hf.errors import UserError


def test_a_batch_is_laid_out_anchors_first_then_partners():
    split = split_of(DENSE)
    draws = list(ClassPairSampler(DENSE, seed=0))[:4]
    batch = load(PairedImages(split, TRANSFORM), draws)
    anchors, partners = zip(*(draw.indices for draw in draws), strict=True)
    assert batch.index.tolist() == [*anchors, *partners]
    assert batch.target.tolist() == [DENSE[row] for row in (*anchors, *partners)]
    assert batch.target[:4].tolist() == batch.target[4:].tolist()
    for place, row in enumerate((*anchors, *partners)):
        seed = draws[place % 4].seed + (place >= 4)
        assert torch.equal(batch.images[place], TRANSFORM({"bytes": picture(row), "path": None}, seed))
    assert (batch.images.dtype, batch.target.dtype, batch.index.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert batch.images.shape == (8, 3, 16, 16)
    assert batch.skipped == ()


def test_two_views_of_one_image_are_augmented_differently():
    batch = load(PairedImages(split_of(DENSE), TRANSFORM), list(ImageSampler(10, views=2))[:5])
    assert batch.index[:5].tolist() == batch.index[5:].tolist()
    assert not any(torch.equal(first, second) for first, second in zip(batch.images[:5], batch.images[5:], strict=True))


def test_a_loader_fetches_each_batch_in_one_read():
    split = split_of(DENSE)
    batches = GlobalBatches(ClassPairSampler(DENSE), 4)
    list(DataLoader(PairedImages(split, TRANSFORM), batch_sampler=batches, collate_fn=PairingCollator()))
    assert list(map(len, split.fetched)) == [8, 8, 4]


def test_a_single_key_loads_as_in_a_batch():
    images = PairedImages(split_of(DENSE), TRANSFORM)
    draws = list(ClassPairSampler(DENSE))
    batch = load(images, draws)
    one_by_one = PairingCollator()([images[draw] for draw in draws])
    assert_equal(batch, one_by_one)
    assert len(images) == 10


def test_anchors_have_the_same_pixels_with_and_without_partners():
    images = PairedImages(split_of(DENSE), TRANSFORM)
    pairs, single = ClassPairSampler(DENSE, seed=6), ImageSampler(10, seed=6)
    for epoch in range(2):
        with_partner, anchors_only = load(images, epoch_of(pairs, epoch)), load(images, epoch_of(single, epoch))
        assert torch.equal(with_partner.images[:10], anchors_only.images)
        assert torch.equal(with_partner.index[:10], anchors_only.index)


def test_pixels_do_not_depend_on_workers_or_batch_size():
    def loaded(workers: int, batch_size: int) -> dict[int, torch.Tensor]:
        batches = GlobalBatches(ClassPairSampler(DENSE, seed=2), batch_size)
        loader = DataLoader(
            PairedImages(split_of(DENSE), TRANSFORM),
            batch_sampler=batches,
            collate_fn=PairingCollator(),
            num_workers=workers,
        )
        pixels = {}
        for batch in loader:
            half = len(batch.target) // 2
            for anchor in range(half):
                pixels[int(batch.index[anchor])] = torch.stack([batch.images[anchor], batch.images[half + anchor]])
        return pixels

    expected = loaded(workers=0, batch_size=4)
    assert sorted(expected) == list(range(10))
    for workers, batch_size in [(2, 4), (0, 3), (2, 10)]:
        pixels = loaded(workers, batch_size)
        assert all(torch.equal(pixels[row], views) for row, views in expected.items())


def test_keys_and_settings_of_another_kind_are_errors_that_name_the_fix():
    loader = DataLoader(PairedImages(split_of(DENSE), TRANSFORM), 4, collate_fn=PairingCollator())
    with pytest.raises(UserError, match=r"key 0: .*sampler=ClassPairSampler\(labels\)"):
        next(iter(loader))
    with pytest.raises(UserError, match="on_corrupt: read 'skip'; allowed: error, replace, drop"):
        PairedImages(split_of(DENSE), TRANSFORM, on_corrupt="skip")


def test_an_empty_batch_collates_to_an_empty_batch():
    batch = PairingCollator()([])
    assert batch.images.shape[:2] == (0, 3)
    assert len(batch.target) == len(batch.index) == 0
    assert (batch.images.dtype, batch.target.dtype, batch.index.dtype) == (torch.uint8, torch.int64, torch.int64)
