"""ClassPairSampler and ImageSampler: partners, order, accepted labels, and seeds."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from pairing_cases import epoch_of
from scipy import stats
from torch.utils.data import BatchSampler, DataLoader

from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.sampling import ClassPairSampler, Draw, ImageSampler
from cskd_hf.errors import UserError

# Three classes of 3, 1 and 6 images, not in order.
LABELS = [4, 0, 4, 9, 4, 4, 0, 4, 0, 4]


def test_each_image_is_an_anchor_exactly_once_per_epoch():
    labels = np.random.default_rng(0).integers(0, 7, 2500)
    sampler = ClassPairSampler(labels, seed=1)
    assert len(sampler) == 2500
    for epoch in range(3):
        assert sorted(draw.indices[0] for draw in epoch_of(sampler, epoch)) == list(range(2500))


@pytest.mark.parametrize(("partner", "choices"), [("any", 6), ("not_self", 5)])
def test_partners_are_uniform_over_the_class(partner, choices):
    sampler = ClassPairSampler(LABELS, seed=5, partner=partner)
    counts = {anchor: Counter() for anchor in range(len(LABELS))}
    for epoch in range(1500):
        for (anchor, other), _ in epoch_of(sampler, epoch):
            counts[anchor][other] += 1
    for anchor, label in enumerate(LABELS):
        own_class = {other for other, its_label in enumerate(LABELS) if its_label == label}
        allowed = own_class - {anchor} if partner == "not_self" and len(own_class) > 1 else own_class
        assert set(counts[anchor]) == allowed
        if len(allowed) > 1:
            assert stats.chisquare(list(counts[anchor].values())).pvalue > 1e-4
        if label == 4:
            assert len(allowed) == choices


def test_partners_of_different_anchors_are_independent():
    """Not a permutation of the class: the two images of a class share their partner half the time."""
    sampler = ClassPairSampler([0, 0], seed=2)
    together = [len({draw.indices[1] for draw in epoch_of(sampler, epoch)}) == 1 for epoch in range(1000)]
    assert abs(sum(together) - 500) < 60


def test_anchor_order_is_uniform():
    sampler = ImageSampler(4, seed=3)
    orders = Counter(tuple(draw.indices[0] for draw in epoch_of(sampler, epoch)) for epoch in range(2400))
    assert len(orders) == 24
    assert stats.chisquare(list(orders.values())).pvalue > 1e-4


def test_a_class_of_one_image_can_be_an_error_that_names_it():
    with pytest.raises(UserError, match=r"1 classes have one training image.*labels \[9\].*data\.singleton=self"):
        ClassPairSampler(LABELS, partner="not_self", singleton="error")
    assert len(list(ClassPairSampler([0, 1, 0, 1], partner="not_self", singleton="error"))) == 4
    with pytest.raises(UserError, match=r"30 classes have .*labels \[0, 1, .*9\]…"):
        ClassPairSampler(range(30), partner="not_self", singleton="error")


def test_partner_any_ignores_singleton_error():
    assert {draw.indices for draw in ClassPairSampler([7], singleton="error")} == {(0, 0)}


def test_keys_are_a_pure_function_of_seed_epoch_and_position():
    sampler, other = (ClassPairSampler(LABELS, seed=11) for _ in range(2))
    epochs = [epoch_of(sampler, epoch) for epoch in range(5)]
    np.random.seed(0), torch.manual_seed(0)
    for epoch in (3, 0, 4, 4, 1, 2):
        assert epoch_of(other, epoch) == epochs[epoch]
    assert list(ClassPairSampler(LABELS, seed=11)) == epochs[0]


def test_epochs_and_seeds_differ_in_order_and_partners():
    labels = [0] * 40 + [1] * 40
    keys = {(seed, epoch): epoch_of(ClassPairSampler(labels, seed), epoch) for seed in range(4) for epoch in range(4)}
    orders = {tuple(draw.indices[0] for draw in draws) for draws in keys.values()}
    partners = {tuple(other for _, other in sorted(draw.indices for draw in draws)) for draws in keys.values()}
    assert len(orders) == len(partners) == len(keys)


def test_sampling_does_not_touch_the_global_generators():
    np.random.seed(1), torch.manual_seed(1)
    expected = np.random.rand(), torch.rand(1).item()
    np.random.seed(1), torch.manual_seed(1)
    epoch_of(ClassPairSampler(LABELS), 3)
    assert (np.random.rand(), torch.rand(1).item()) == expected


def test_augmentation_seeds_are_distinct_over_positions_epochs_and_seeds():
    # The partner's seed is its anchor's plus one, which must not be another anchor's seed either.
    seeds = [
        draw.seed
        for seed in (0, 1, 2**32 - 1)
        for epoch in range(4)
        for draw in epoch_of(ImageSampler(3000, seed), epoch)
    ]
    assert len({*seeds, *(seed + 1 for seed in seeds)}) == 2 * len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert all(isinstance(seed, int) for seed in seeds[:10])


def test_augmentation_seeds_look_random_in_every_bit():
    """NumPy's generator uses the low 32 bits, Python's and torch's all of them."""
    seeds = np.array([draw.seed for draw in ImageSampler(4000, seed=0)], dtype=np.uint64)
    share = [float((seeds >> np.uint64(bit) & np.uint64(1)).mean()) for bit in range(63)]
    assert np.abs(np.array(share) - 0.5).max() < 0.04
    assert len(np.unique(seeds % 2**32)) == 4000


@pytest.mark.parametrize("partner", ["any", "not_self"])
def test_image_sampler_yields_the_anchors_and_seeds_of_the_pair_sampler(partner):
    for seed in (0, 7):
        for epoch in (0, 3):
            pairs = epoch_of(ClassPairSampler(LABELS, seed, partner), epoch)
            anchors = [Draw(draw.indices[:1], draw.seed) for draw in pairs]
            assert epoch_of(ImageSampler(len(LABELS), seed), epoch) == anchors
            assert epoch_of(ImageSampler(len(LABELS), seed, views=2), epoch) == [
                Draw(draw.indices * 2, draw.seed) for draw in anchors
            ]


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("partner", ["any", "not_self"])
def test_labels_can_be_a_list_an_array_or_a_tensor_of_any_integer_type(partner):
    expected = list(ClassPairSampler(LABELS, 0, partner))
    assert list(ClassPairSampler(tuple(LABELS), 0, partner)) == expected
    for dtype in INTEGERS:
        assert list(ClassPairSampler(np.array(LABELS, dtype=dtype), 0, partner)) == expected
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        assert list(ClassPairSampler(torch.tensor(LABELS, dtype=dtype), 0, partner)) == expected


@pytest.mark.parametrize(
    "names",
    [
        {0: -3, 4: -1, 9: 0},
        {0: 10**12, 4: 10**12 + 5, 9: 10**18},
        {0: -(2**63), 4: 0, 9: 2**63 - 1},
        {0: 70_000, 4: 70_001, 9: 140_000},
        {0: 65_535, 4: 65_536, 9: 131_071},
        {0: 1, 4: 2, 9: 2**16},
        {0: 0, 4: 1, 9: 2**16 + 1},
    ],
)
def test_only_the_order_of_the_label_values_matters(names):
    """Labels can be negative, huge or have gaps."""
    renamed = np.array([names[label] for label in LABELS], dtype=np.int64)
    assert list(ClassPairSampler(renamed, 0)) == list(ClassPairSampler(LABELS, 0))


@pytest.mark.parametrize(
    ("dtype", "labels"), [("int8", [-128, 127]), ("int16", [-32768, 32767]), ("uint64", [1, 2**64 - 1])]
)
def test_extreme_labels_do_not_overflow_into_one_class(dtype, labels):
    sampler = ClassPairSampler(np.array(labels * 20, dtype=dtype), 0)
    assert all((anchor - other) % 2 == 0 for (anchor, other), _ in sampler)


@pytest.mark.parametrize(
    "labels",
    [[0.0, 1.0], np.zeros(3, dtype=np.float32), torch.rand(4), [[0, 1], [1, 0]], [], np.zeros(0, dtype=int), ["a"], 3],
)
def test_labels_must_be_one_integer_per_image(labels):
    with pytest.raises(UserError) as caught:
        ClassPairSampler(labels)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("setting", [{"partner": "self"}, {"singleton": "skip"}, {"sampling": "balanced"}])
def test_a_misspelt_setting_lists_the_allowed_values(setting):
    with pytest.raises(UserError, match="allowed: "):
        ClassPairSampler(LABELS, **setting)


def test_draws_are_a_slice_of_the_iteration():
    for sampler in (ClassPairSampler(np.arange(2500) % 9), ImageSampler(2500, views=1)):
        sampler.set_epoch(2)
        keys = list(sampler)
        assert len(keys) == 2500
        for start, stop in [(0, 2500), (0, 1), (1023, 1025), (2499, 2500), (2400, 9999), (7, 7), (2500, 2600)]:
            assert sampler.draws(start, stop) == keys[start:stop]


def test_keys_are_plain_integers():
    """NumPy integers pickle to ten times the size."""
    for draw in ClassPairSampler(np.array(LABELS)):
        assert [type(value) for value in (*draw.indices, draw.seed)] == [int, int, int]


def test_a_sampler_has_no_generator_attribute_for_accelerate_to_replace():
    assert not hasattr(ClassPairSampler(LABELS), "generator")
    assert not hasattr(ImageSampler(3), "generator")


def test_drawing_an_epoch_makes_no_python_object_per_image():
    import tracemalloc

    labels = np.arange(200_000) % 1000
    tracemalloc.start()
    ClassPairSampler(labels).set_epoch(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * len(labels)  # a tuple of two alone takes 56 bytes


class Echo(torch.utils.data.Dataset):
    def __getitem__(self, draw: Draw) -> Draw:
        return draw


@pytest.mark.parametrize("workers", [0, 2])
def test_the_sampler_works_in_torchs_batch_sampler_and_loader(workers):
    sampler = ClassPairSampler(LABELS, seed=4)
    loader = DataLoader(
        Echo(), batch_sampler=BatchSampler(sampler, 4, drop_last=False), num_workers=workers, collate_fn=list
    )
    for epoch in (1, 0):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert list(map(len, batches)) == [4, 4, 2]
        assert [key for batch in batches for key in batch] == epoch_of(ClassPairSampler(LABELS, seed=4), epoch)


def test_an_epoch_that_starts_again_warns_of_the_missing_set_epoch():
    sampler = ClassPairSampler([0, 1, 0, 1])
    for keys in (sampler, GlobalBatches(sampler, batch_size=3)):
        for epoch in (1, 2):
            sampler.set_epoch(epoch)
            list(keys)
        with pytest.warns(UserWarning, match=r"epoch 2 again.*same.*pixels; call set_epoch\(epoch\) before each epoch"):
            next(iter(keys))
        sampler.set_epoch(3)
        list(itertools.islice(keys, 2))  # an epoch of a fixed number of steps
        with pytest.warns(UserWarning, match="epoch 3 again"):
            next(iter(keys))
