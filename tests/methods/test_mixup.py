"""Mixup and CutMix: the mixture recovered from the soft targets, its randomness, the losses."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Identity, cross_entropy, kl, one_hot, pixels
from timm.data import Mixup as TimmMixup
from timm.loss import BinaryCrossEntropy
from torch import Tensor, nn

from cskd_hf.errors import UserError
from cskd_hf.methods import CSKD, Batch, CrossEntropy, Mixup, MixupCSKD, MutualCSKD
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.seeding import seeded

RANDOM = np.random.RandomState(0)


def images_of(num: int, size: int = 6) -> Tensor:
    return torch.tensor(np.random.RandomState(num).randn(num, 3, size, size), dtype=torch.float32)


class Linear(nn.Module):
    """Four fixed projections of an image of `images_of`."""

    num_classes = NUM_CLASSES

    def forward(self, images: Tensor) -> Tensor:
        weight = torch.randn(108, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
        return images.flatten(1) @ weight


def mixed(method: Mixup, num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    images, target = images_of(num), torch.arange(num) % NUM_CLASSES
    torch.manual_seed(seed)
    mixture, soft = method.mix(Identity(), images, target)
    return images.numpy(), target.numpy(), mixture.numpy(), soft.numpy()


def partner_of(i: int, num: int) -> int:
    """The batch in reverse order, an odd one padded with its last image."""
    return min((num + num % 2) - 1 - i, num - 1)


@pytest.mark.parametrize("num", [4, 6, 5, 7])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mixup_combines_the_batch_with_its_reverse_by_one_lambda(num, seed):
    images, target, mixture, soft = mixed(Mixup(mixup_alpha=1.0), num, seed)
    assert mixture.shape == images.shape
    first = next(i for i in range(num) if target[i] != target[partner_of(i, num)])
    share = soft[first, target[first]].astype(np.float64)
    assert 0.001 < share < 0.999
    reverse = [partner_of(i, num) for i in range(num)]
    np.testing.assert_allclose(mixture, share * images + (1 - share) * images[reverse], rtol=0, atol=1e-5)
    expected = share * one_hot(target) + (1 - share) * one_hot(target[reverse])
    np.testing.assert_allclose(soft, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num", [4, 5])
def test_cutmix_pastes_one_box_of_the_reversed_batch_and_weights_labels_by_its_area(num, seed):
    images, target, mixture, soft = mixed(Mixup(mixup_alpha=0.0, cutmix_alpha=1.0), num, seed)
    reverse = [partner_of(i, num) for i in range(num)]
    pasted = (mixture != images).any(axis=(0, 1))
    np.testing.assert_array_equal(mixture, np.where(pasted, images[reverse], images))
    rows, columns = np.flatnonzero(pasted.any(axis=1)), np.flatnonzero(pasted.any(axis=0))
    assert pasted.sum() == len(rows) * len(columns)  # one box
    share = 1 - pasted.mean()
    expected = share * one_hot(target) + (1 - share) * one_hot(target[reverse])
    np.testing.assert_allclose(soft, expected, rtol=0, atol=1e-6)


def test_with_both_enabled_each_batch_uses_one_of_them():
    boxes = 0
    for seed in range(40):
        images, _, mixture, _ = mixed(Mixup(mixup_alpha=1.0, cutmix_alpha=1.0), 4, seed)
        same = (mixture == images).all(axis=(0, 1)).sum()
        boxes += bool(same)  # Mixup changes every pixel
    assert 10 < boxes < 30


def test_lambda_follows_the_beta_distribution():
    """Beta(α, α) has mean ½ and variance 1 / (4 · (2α + 1))."""
    shares = []
    for seed in range(400):
        _, target, _, soft = mixed(Mixup(mixup_alpha=0.4), 2, seed)
        shares.append(soft[0, target[0]])
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)
    assert np.var(shares) == pytest.approx(1 / (4 * 1.8), abs=0.02)


@pytest.mark.parametrize("method", [Mixup(mixup_alpha=1.0), Mixup(mixup_alpha=0.0, cutmix_alpha=1.0)])
def test_a_batch_of_one_is_mixed_with_itself(method):
    images, target, mixture, soft = mixed(method, 1)
    np.testing.assert_allclose(mixture, images, rtol=0, atol=1e-6)
    np.testing.assert_allclose(soft, one_hot(target), rtol=0, atol=1e-6)


def test_mixing_depends_on_torchs_generator_and_leaves_the_others_alone():
    np.random.seed(1)
    random.seed(1)
    one = mixed(Mixup(mixup_alpha=1.0), 4, seed=5)
    np.random.seed(2)
    random.seed(2)
    states = np.random.get_state(), random.getstate()
    two = mixed(Mixup(mixup_alpha=1.0), 4, seed=5)
    np.testing.assert_array_equal(one[2], two[2])
    np.testing.assert_array_equal(np.random.get_state()[1], states[0][1])
    assert np.random.get_state()[2] == states[0][2]
    assert random.getstate() == states[1]
    other = mixed(Mixup(mixup_alpha=1.0), 4, seed=6)
    assert not np.array_equal(one[2], other[2])


# Losses


LOGITS = RANDOM.randn(6, NUM_CLASSES) * 3
TARGET = np.array([0, 1, 2, 0, 1, 2])  # three pairs of a class
SMOOTHING = (0.0, 0.3)


def batch_of() -> Batch:
    return Batch(pixels(LOGITS), torch.tensor(TARGET), torch.arange(6))


def expected_task(method: TaskLoss, num: int) -> tuple[float, np.ndarray]:
    """Cross-entropy of the first `num` images as mixed with torch's seed 3, and their logits."""
    torch.manual_seed(3)
    images, soft = method.mix(Identity(), batch_of().images[:num].detach(), torch.tensor(TARGET[:num]))
    logits = images.flatten(1).double().numpy()
    q = (1 - method.smoothing) * soft.double().numpy() + method.smoothing / NUM_CLASSES
    return cross_entropy(logits, q), logits


@pytest.mark.parametrize("smoothing", SMOOTHING)
def test_the_loss_is_cross_entropy_of_the_mixed_images_against_the_mixed_labels(smoothing):
    method, batch = Mixup(smoothing=smoothing), batch_of()
    torch.manual_seed(3)
    result = method.forward_loss(Identity(), batch)
    expected, logits = expected_task(method, 6)
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert abs(expected - cross_entropy(LOGITS, TARGET)) > 1e-2
    assert torch.equal(result["target"], batch.target)  # the training error's labels
    np.testing.assert_allclose(result["output"].detach().numpy(), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alphas", [{"mixup_alpha": 1.0}, {"cutmix_alpha": 1.0}])
@pytest.mark.parametrize("bce", [None, {}, {"bce_target_thresh": 0.2}, {"bce_target_thresh": 0.2, "bce_sum": True}])
def test_the_loss_of_smoothed_mixed_labels_is_timms(alphas, bce):
    images, target = images_of(6), torch.arange(6) % NUM_CLASSES
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, **alphas}
    torch.manual_seed(3)
    with seeded(int(torch.randint(2**31, ()))):
        mixture, soft = TimmMixup(**settings, label_smoothing=0.3, num_classes=NUM_CLASSES)(images.clone(), target)
    torch.manual_seed(3)
    fields = {} if bce is None else {"bce_loss": True, **bce}
    result = CrossEntropy(smoothing=0.3, **alphas, **fields).forward_loss(Linear(), Batch(images, target, target))
    logits = Linear()(mixture).detach().double()
    if bce is None:
        expected = cross_entropy(logits.numpy(), soft.double().numpy())
    else:  # as timm's train.py builds it when it mixes
        loss = BinaryCrossEntropy(0.0, bce.get("bce_target_thresh"), sum_classes=bce.get("bce_sum", False))
        expected = loss(logits, soft.double()).item()
    assert result["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("smoothing", "threshold"), [(0.1, 0.0), (0.1, 0.024), (0.6, 0.55)])
def test_a_threshold_that_does_not_separate_the_smoothed_labels_is_rejected(smoothing, threshold):
    method = CSKD(smoothing=smoothing, bce_loss=True, bce_target_thresh=threshold)
    off = smoothing / NUM_CLASSES
    line = (
        f"method.bce_target_thresh: read {threshold:g}, but method.smoothing={smoothing:g} makes targets of {off:g} and"
    )
    with pytest.raises(UserError, match=f"^{re.escape(line)}"):
        method.build(Identity(), EXPERIMENT)


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize(("temperature", "weight"), [(1.0, 0.0), (4.0, 3.0)])
@pytest.mark.parametrize("method", [MixupCSKD, CSKD, MutualCSKD])
def test_the_class_wise_loss_is_that_of_the_unmixed_pairs(method, temperature, weight, smoothing):
    method = method(mixup_alpha=1.0, smoothing=smoothing, temperature=temperature, distill_loss_weight=weight)
    batch, supervised = batch_of(), 6 if isinstance(method, MutualCSKD) else 3
    torch.manual_seed(3)
    result = method.forward_loss(Identity(), batch)
    result["loss"].backward()
    task, logits = expected_task(method, supervised)
    kd_loss = kl(LOGITS[3:], LOGITS[:3], temperature)
    if supervised == 6:
        kd_loss = (kd_loss + kl(LOGITS[:3], LOGITS[3:], temperature)) / 2
    assert result["task_loss"].item() == pytest.approx(task, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(kd_loss, rel=1e-5)
    assert result["loss"].item() == pytest.approx(task + weight * kd_loss, rel=1e-5)
    np.testing.assert_allclose(result["output"].detach().numpy(), logits, rtol=0, atol=1e-6)
    assert batch.images.grad[3:].any() == (supervised == 6)  # CS-KD's partners are constants


@pytest.mark.parametrize(("mixing", "plain"), [(Mixup, CrossEntropy), (MixupCSKD, CSKD)])
def test_alpha_zero_is_bitwise_the_method_without_mixing_and_draws_nothing(mixing, plain):
    state = torch.get_rng_state()
    one, two = (method.forward_loss(Identity(), batch_of()) for method in (mixing(mixup_alpha=0.0), plain()))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], two[key]) for key in two)
