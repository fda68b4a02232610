"""GlobalBatches: every key exactly once, in the same global batches, on any number of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import chain, product

import numpy as np
import pytest

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.sampling import ClassPairSampler, Draw, ImageSampler
from cskd_hf.errors import UserError


def make_ranks(
    num_images: int, world: int, batch_size: int, drop_last: bool = False, seed: int = 3
) -> list[GlobalBatches]:
    """One `GlobalBatches` per rank, each with its own sampler."""
    labels = np.arange(num_images) % 3
    return [GlobalBatches(ClassPairSampler(labels, seed), batch_size, world, rank, drop_last) for rank in range(world)]


def real_keys(batches: GlobalBatches) -> list[list[Draw]]:
    """The keys that this rank loads, without the padding."""
    loaded, position = [], batches.position
    for keys in batches:
        total, own = batches.counts(position)
        assert len(keys) == max(own, 1)
        loaded.append(keys[:own])
        position += total
    return loaded


def global_batches(ranks: list[GlobalBatches]) -> list[list[Draw]]:
    """Each global batch, in rank order."""
    return [list(chain.from_iterable(shares)) for shares in zip(*map(real_keys, ranks), strict=True)]


SMALL_CASES = list(product(range(1, 16), range(1, 5), range(1, 4)))


@pytest.mark.parametrize("num_images", [8, 16, 21, 23, 25, 40])
def test_any_number_of_ranks_sees_the_same_global_batches(num_images):
    one, two, four, eight = (global_batches(make_ranks(num_images, world, 8 // world)) for world in (1, 2, 4, 8))
    assert one == two == four == eight
    assert list(map(len, one)) == [8] * (num_images // 8) + [num_images % 8] * (num_images % 8 > 0)


def test_every_key_is_loaded_exactly_once_per_epoch():
    for num_images, world, batch_size in SMALL_CASES:
        ranks = make_ranks(num_images, world, batch_size)
        for epoch in (0, 5):
            for rank in ranks:
                rank.start_epoch(epoch)
            loaded = Counter(chain.from_iterable(global_batches(ranks)))
            expected = ClassPairSampler(np.arange(num_images) % 3, 3)
            expected.set_epoch(epoch)
            assert loaded == Counter(expected), (num_images, world, batch_size)
            assert set(loaded.values()) == {1}


def test_every_rank_takes_the_same_number_of_steps_and_no_empty_one():
    """Otherwise the other ranks would wait in a collective."""
    for num_images, world, batch_size in SMALL_CASES:
        steps = [list(rank) for rank in make_ranks(num_images, world, batch_size)]
        lengths = {len(own) for own in steps} | {len(rank) for rank in make_ranks(num_images, world, batch_size)}
        assert lengths == {-(-num_images // (world * batch_size))}
        assert all(0 < len(keys) <= batch_size for own in steps for keys in own)


def test_a_short_last_batch_is_split_evenly():
    for num_images, world, batch_size in SMALL_CASES:
        ranks = make_ranks(num_images, world, batch_size)
        short = num_images % (world * batch_size)
        position = num_images - short
        if short:
            counts = [rank.counts(position) for rank in ranks]
            assert {total for total, _ in counts} == {short}
            own = [share for _, share in counts]
            assert sum(own) == short
            assert max(own) - min(own) <= 1


def test_a_rank_without_keys_repeats_the_last_one_with_zero_weight():
    ranks = make_ranks(num_images=2, world=4, batch_size=3)
    (first,), (second,), (third,), (fourth,) = (list(rank) for rank in ranks)
    keys = ranks[0].sampler.draws(0, 2)
    assert (first, second, third, fourth) == ([keys[0]], [keys[1]], [keys[1]], [keys[1]])
    assert [rank.counts(0) for rank in ranks] == [(2, 1), (2, 1), (2, 0), (2, 0)]


@pytest.mark.parametrize(("world", "batch_size"), [(1, 4), (2, 2), (4, 1)])
def test_resuming_yields_the_remaining_batches_on_any_number_of_ranks(world, batch_size):
    for num_images in (4, 9, 14, 23):
        whole = make_ranks(num_images, 1, 4)
        whole[0].start_epoch(2)
        expected = global_batches(whole)
        for done in range(len(expected)):
            resumed = make_ranks(num_images, world, batch_size)
            for rank in resumed:
                rank.start_epoch(2, position=4 * done)
            assert {len(rank) for rank in resumed} == {len(expected) - done}
            assert global_batches(resumed) == expected[done:]


def test_resuming_with_another_global_batch_size_loses_no_key():
    for num_images, world, batch_size in SMALL_CASES:
        keys = list(make_ranks(num_images, 1, 1)[0].sampler)
        for position in range(0, num_images, 3):
            resumed = make_ranks(num_images, world, batch_size)
            for rank in resumed:
                rank.start_epoch(0, position)
            batches = global_batches(resumed)
            assert list(chain.from_iterable(batches)) == keys[position:]
            assert all(len(batch) == world * batch_size for batch in batches[:-1])


def test_a_finished_epoch_has_no_batch_left():
    (batches,) = make_ranks(10, 1, 4)
    batches.start_epoch(0, position=10)
    assert len(batches) == 0
    assert list(batches) == []


def test_a_new_epoch_starts_at_its_beginning():
    (batches,) = make_ranks(10, 1, 4)
    first = list(batches)
    batches.start_epoch(0, position=4)
    assert list(batches) == first[1:]
    batches.start_epoch(1)
    assert len(list(batches)) == 3
    batches.start_epoch(0)
    assert list(batches) == first


def test_drop_last_drops_only_the_short_batch():
    for num_images, world, batch_size in SMALL_CASES:
        full = num_images // (world * batch_size)
        if full:
            ranks = make_ranks(num_images, world, batch_size, drop_last=True)
            assert global_batches(ranks) == global_batches(make_ranks(num_images, world, batch_size))[:full]
            assert {len(rank) for rank in ranks} == {full}
            assert {rank.num_samples for rank in ranks} == {full * world * batch_size}


def test_drop_last_that_leaves_no_batch_names_the_settings():
    with pytest.raises(UserError, match=r"data\.drop_last.*7 images.*4 on 2 processes.*data\.batch_size"):
        make_ranks(7, 2, 4, drop_last=True)


@pytest.mark.parametrize("process_index", [-1, 2])
def test_a_rank_that_does_not_exist_or_no_key_per_batch_is_rejected(process_index):
    with pytest.raises(UserError, match=r"batch_size: read 0; write 1 or more"):
        GlobalBatches(ClassPairSampler([0, 0]), 0)
    with pytest.raises(UserError, match=f"process_index: read {process_index}; write 0 to 1"):
        GlobalBatches(ImageSampler(7), 4, 2, process_index)


def test_single_images_are_split_like_pairs():
    for rank in range(2):
        pairs = make_ranks(11, 2, 3)[rank]
        single = GlobalBatches(ImageSampler(11, seed=3), 3, 2, rank)
        assert [[key.indices[0] for key in keys] for keys in single] == [
            [key.indices[0] for key in keys] for keys in pairs
        ]
