"""Epochs in which images do not appear once each: unequal classes in chosen shares, and repeated augmentation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pairing_cases import epoch_of

from cskd_hf.data.draws import draws_per_class, expected_draws
from cskd_hf.data.sampling import ClassPairSampler, ImageSampler, LastUpdateSampler
from cskd_hf.errors import UserError

TAILED = np.repeat([0, 1, 2], [40, 9, 1])


def reference_shares(sampling: str) -> np.ndarray:
    power = {"instance": 1.0, "sqrt": 0.5, "class_balanced": 0.0}[sampling]
    weights = np.array([40.0, 9.0, 1.0]) ** power
    return 50 * weights / weights.sum()


@pytest.mark.parametrize("sampling", ["instance", "sqrt", "class_balanced"])
@pytest.mark.parametrize("make", [ClassPairSampler, ImageSampler, LastUpdateSampler])
def test_classes_get_their_shares_and_images_of_a_class_equal_ones(make, sampling):
    settings = {"sampling": sampling, "seed": 3}
    sampler = make(TAILED, **settings) if make is ClassPairSampler else make(50, labels=TAILED, **settings)
    seen = set()
    for epoch in range(20):
        anchors = np.array([draw.indices[0] for draw in epoch_of(sampler, epoch)])
        assert len(anchors) == 50
        shares = np.bincount(TAILED[anchors], minlength=3)
        assert np.abs(shares - reference_shares(sampling)).max() < 1
        for label in range(3):
            repeats = np.bincount(anchors, minlength=50)[np.flatnonzero(np.equal(TAILED, label))]
            assert repeats.max() - repeats.min() <= 1
        seen.update(anchors.tolist())
        assert sorted(anchors) != anchors.tolist()  # shuffled
    assert seen == set(range(50))


def test_equal_classes_are_balanced_without_repeats():
    labels = np.arange(60) % 3
    for sampling in ("sqrt", "class_balanced"):
        sampler = ImageSampler(60, seed=0, sampling=sampling, labels=labels)
        assert sorted(draw.indices[0] for draw in sampler) == list(range(60))


def test_a_baseline_sees_the_same_anchors_under_every_sampling():
    for sampling, repeats in itertools.product(("instance", "sqrt", "class_balanced"), (1, 3)):
        pairs = ClassPairSampler(TAILED, seed=7, sampling=sampling, aug_repeats=repeats)
        single = ImageSampler(50, seed=7, sampling=sampling, labels=TAILED, aug_repeats=repeats)
        for epoch in (0, 5):
            assert [(draw.indices[0], draw.seed) for draw in epoch_of(pairs, epoch)] == [
                (draw.indices[0], draw.seed) for draw in epoch_of(single, epoch)
            ]


@pytest.mark.parametrize("make", [ClassPairSampler, ImageSampler, LastUpdateSampler])
@pytest.mark.parametrize("repeats", [2, 3, 50, 60])
def test_an_epoch_of_repeats_shows_the_first_images_of_the_order_several_times_with_other_seeds(make, repeats):
    images = TAILED if make is ClassPairSampler else 50
    for epoch in (0, 4):
        order = [draw.indices[0] for draw in epoch_of(make(images, seed=3), epoch)]
        repeated = epoch_of(make(images, seed=3, aug_repeats=repeats), epoch)
        assert [draw.indices[0] for draw in repeated] == [order[position // repeats] for position in range(50)]
        assert len({draw.seed for draw in repeated}) == 50


def test_repeats_of_an_anchor_have_partners_of_their_own():
    labels = np.zeros(300, dtype=int)
    for draws in zip(*[iter(epoch_of(ClassPairSampler(labels, seed=1, aug_repeats=3), 2))] * 3, strict=True):
        anchors, partners = zip(*(draw.indices for draw in draws), strict=True)
        assert len(set(anchors)) == 1
        assert len(set(partners)) > 1


@pytest.mark.parametrize("sampling", ["instance", "class_balanced"])
def test_repeated_epochs_show_every_image_about_equally_often(sampling):
    labels = np.arange(60) % 3
    counts = np.zeros(60)
    for epoch in range(300):
        sampler = ImageSampler(60, seed=0, sampling=sampling, labels=labels, aug_repeats=3)
        counts += np.bincount([draw.indices[0] for draw in epoch_of(sampler, epoch)], minlength=60)
    assert counts.sum() == 300 * 60
    # A third of the images an epoch, three times each: mean 300, standard deviation 3 · √(300 · 2/9) = 24.5.
    assert np.abs(counts - 300).max() < 5 * 24.5


def test_a_class_without_images_gets_no_draws():
    random = np.random.RandomState(0)
    assert draws_per_class(np.array([0, 6, 2]), "class_balanced", random).tolist() == [0, 4, 4]


def test_expected_draws_follow_the_power_of_a_classs_size():
    counts = np.array([0, 9, 4, 1])
    np.testing.assert_allclose(expected_draws(counts, "instance"), counts)
    np.testing.assert_allclose(expected_draws(counts, "sqrt"), [0, 7, 14 / 3, 7 / 3])
    np.testing.assert_allclose(expected_draws(counts, "class_balanced"), [0, 14 / 3, 14 / 3, 14 / 3])


@pytest.mark.parametrize("labels", [None, TAILED[1:], [*TAILED, 0]])
def test_unequal_shares_need_a_label_for_each_image(labels):
    draws = list(ImageSampler(50, sampling="sqrt", labels=TAILED.tolist()))
    assert draws == list(ImageSampler(50, sampling="sqrt", labels=TAILED))
    with pytest.raises(UserError, match=r"labels: sampling='sqrt' needs .* each of 50 images"):
        ImageSampler(50, sampling="sqrt", labels=labels)
