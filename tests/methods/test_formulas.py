"""Every loss that follows from the logits alone, against its paper's formula in NumPy: value, terms, gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Identity, cross_entropy, kl, log_softmax, one_hot, pixels, softmax
from torch import nn

from cskd_hf.methods import CSKD, CSKDE, DDGSD, Batch, CrossEntropy, MaxEntropy, Method, MutualCSKD, TfKDReg
from cskd_hf.methods.cskd import class_wise_kd_loss

B = 3
LABELS = np.array([2, 0, 3])
COUNTS = np.array([30.0, 0.0, 6.0, 4.0])  # training samples of each class
Terms = dict[str, tuple[float, float]]  # name → (weight, value)


class Case(NamedTuple):
    """`terms(z, c, y)`: z are the logits, c the same logits as constants, y the labels of all views."""

    method: Method
    views: int
    terms: Callable[[np.ndarray, np.ndarray, np.ndarray], Terms]


def label_smoothing(smoothing: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        return {"task_loss": (1, cross_entropy(z, (1 - smoothing) * one_hot(y) + smoothing / NUM_CLASSES))}

    return Case(CrossEntropy(smoothing=smoothing), 1, terms)


def bce(method: Callable[..., Method], views: int, smoothing: float, threshold: float | None, total: bool) -> Case:
    """Binary cross-entropy as task loss; `views` of the batch are supervised, the class-wise loss has weight 0."""

    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        z, q = z[: len(z) // views], (1 - smoothing) * one_hot(y[: len(y) // views]) + smoothing / NUM_CLASSES
        q = q if threshold is None else np.where(q > threshold, 1.0, 0.0)
        loss = q * np.logaddexp(0, -z) + (1 - q) * np.logaddexp(0, z)
        return {"task_loss": (1, loss.sum() / len(z) if total else loss.mean())}

    settings = {"smoothing": smoothing, "bce_loss": True, "bce_target_thresh": threshold, "bce_sum": total}
    return Case(method(**settings), views, terms)


def unequal(method: type[CrossEntropy | CSKD], tau: float, beta: float, smoothing: float = 0.0) -> Case:
    """Logit adjustment and class weights; a class without images counts as one image."""
    n = np.maximum(COUNTS, 1)
    weights = (1 - beta) / (1 - beta**n)
    weights *= n.sum() / (weights * n).sum()

    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        q = (1 - smoothing) * one_hot(y[:B]) + smoothing / NUM_CLASSES
        task = cross_entropy(z[:B] + tau * np.log(n / n.sum()), q * weights)
        kd = {"kd_loss": (1.0, kl(c[B:], z[:B], 4.0))} if method is CSKD else {}
        return {"task_loss": (1, task), **kd}

    settings = {"logit_adjustment": tau, "class_weight_beta": beta, "smoothing": smoothing}
    return Case(method.model_validate(settings), 1 if method is CrossEntropy else 2, terms)


def max_entropy(gamma: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        entropy = -(softmax(z) * log_softmax(z)).sum(axis=1).mean()
        return {"task_loss": (1, cross_entropy(z, y)), "output_entropy": (-gamma, entropy)}

    return Case(MaxEntropy(entropy_weight=gamma), 1, terms)


def cskd(temperature: float, weight: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        kd = kl(c[B:], z[:B], temperature)
        return {"task_loss": (1, cross_entropy(z[:B], y[:B])), "kd_loss": (weight, kd)}

    return Case(CSKD(temperature=temperature, distill_loss_weight=weight), 2, terms)


def cskd_e(temperature: float, weight: float, sample_weight: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        kd, sample_kd = (kl(teacher, z[:B], temperature) for teacher in (c[B : 2 * B], c[2 * B :]))
        task = {"task_loss": (1, cross_entropy(z[:B], y[:B]))}
        return {**task, "kd_loss": (weight, kd), "sample_kd_loss": (sample_weight, sample_kd)}

    method = CSKDE(temperature=temperature, distill_loss_weight=weight, sample_loss_weight=sample_weight)
    return Case(method, 3, terms)


def mutual_cskd(temperature: float, weight: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        kd = (kl(c[B:], z[:B], temperature) + kl(c[:B], z[B:], temperature)) / 2
        return {"task_loss": (1, cross_entropy(z, y)), "kd_loss": (weight, kd)}

    return Case(MutualCSKD(temperature=temperature, distill_loss_weight=weight), 2, terms)


def ddgsd(temperature: float, weight: float, feature_weight: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        kd = (kl(c[B:], z[:B], temperature) + kl(c[:B], z[B:], temperature)) / 2
        distance = ((2 * z[:B].mean(axis=0) - 2 * z[B:].mean(axis=0)) ** 2).sum()
        task = {"task_loss": (1, cross_entropy(z, y))}
        return {**task, "kd_loss": (weight, kd), "feature_loss": (feature_weight, distance)}

    method = DDGSD(temperature=temperature, distill_loss_weight=weight, feature_loss_weight=feature_weight)
    return Case(method, 2, terms)


def tfkd_reg(correct: float, temperature: float, alpha: float) -> Case:
    def terms(z: np.ndarray, c: np.ndarray, y: np.ndarray) -> Terms:
        probability = np.where(one_hot(y) == 1, correct, (1 - correct) / (NUM_CLASSES - 1))
        kd = kl(probability / temperature, z, 1.0)  # the teacher's logits are probabilities; the student is at T = 1
        return {"task_loss": (1 - alpha, cross_entropy(z, y)), "kd_loss": (alpha, kd)}

    method = TfKDReg(correct_probability=correct, temperature=temperature, distill_loss_weight=alpha)
    return Case(method, 1, terms)


CASES = [
    *(label_smoothing(smoothing) for smoothing in (0.0, 0.1, 0.6)),
    *(
        bce(CrossEntropy, 1, *case)
        for case in ((0.0, None, False), (0.3, None, True), (0.3, 0.2, False), (0.0, 0.0, True))
    ),
    bce(partial(CSKD, distill_loss_weight=0.0), 2, 0.3, None, True),
    *(unequal(CrossEntropy, *settings) for settings in ((1.0, 0.0), (0.0, 0.9), (0.5, 0.99, 0.1))),
    unequal(CSKD, 1.0, 0.9),
    *(max_entropy(gamma) for gamma in (0.0, 0.5, 2.0)),
    *(cskd(temperature, weight) for temperature in (1.0, 4.0) for weight in (0.0, 1.0, 3.0)),
    *(cskd_e(temperature, *weights) for temperature in (1.0, 4.0) for weights in ((1.0, 1.0), (3.0, 0.5), (0.0, 2.0))),
    *(mutual_cskd(temperature, weight) for temperature in (1.0, 4.0) for weight in (0.0, 3.0)),
    *(ddgsd(*settings) for settings in ((1.0, 0.0, 0.0), (3.0, 1.0, 5e-4), (2.0, 0.5, 0.1))),
    *(tfkd_reg(*settings) for settings in ((0.99, 20.0, 0.1), (0.9, 0.2, 1.0), (0.9, 1.0, 0.5))),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: str(case.method))


def batch_of(case: Case, logits: np.ndarray) -> Batch:
    return Batch(pixels(logits), torch.tensor(np.tile(LABELS, case.views)), torch.arange(len(logits)))


def module_of(case: Case) -> nn.Module:
    return case.method.build(Identity(), EXPERIMENT._replace(class_counts=tuple(COUNTS)))


def random_logits(case: Case) -> np.ndarray:
    return np.random.RandomState(0).randn(case.views * B, NUM_CLASSES) * 3


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_terms_equal_the_formula(case: Case, dtype: torch.dtype) -> None:
    batch = batch_of(case, random_logits(case))
    batch = batch._replace(images=batch.images.to(dtype))
    result = case.method.forward_loss(module_of(case), batch)
    z = batch.images.detach().double().flatten(1).numpy()
    terms = case.terms(z, z, batch.target.numpy())
    for name, (_, value) in terms.items():
        assert result[name].dtype == torch.float32
        assert result[name].item() == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert result["loss"].dtype == torch.float32
    assert result["loss"].item() == pytest.approx(sum(weight * value for weight, value in terms.values()), rel=1e-5)


@each_case
def test_the_gradient_is_that_of_the_formula_with_constant_teachers(case: Case) -> None:
    z = random_logits(case)
    batch = batch_of(case, z)
    case.method.forward_loss(module_of(case), batch)["loss"].backward()

    def loss(shifted: np.ndarray) -> float:
        return sum(weight * value for weight, value in case.terms(shifted, z, batch.target.numpy()).values())

    expected, step = np.zeros_like(z), 1e-5
    for place in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[place] += step
        down[place] -= step
        expected[place] = (loss(up) - loss(down)) / (2 * step)
    assert batch.images.grad is not None
    np.testing.assert_allclose(batch.images.grad.flatten(1).numpy(), expected, rtol=1e-4, atol=1e-5)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_logits_stay_finite(case: Case, dtype: torch.dtype) -> None:
    signs = np.random.RandomState(1).choice([-1e4, 0, 1e4], size=(case.views * B, NUM_CLASSES))
    batch = batch_of(case, signs)
    result = case.method.forward_loss(module_of(case), batch._replace(images=batch.images.to(dtype)))
    result["loss"].backward()
    assert all(result[name].isfinite() for name in case.terms(signs, signs, batch.target.numpy()))
    assert batch.images.grad is not None
    assert batch.images.grad.isfinite().all()


def test_the_partners_distribution_is_the_first_argument_of_the_divergence() -> None:
    uniform, certain = torch.tensor([[0.0, 0.0]]), torch.tensor([[20.0, 0.0]])
    assert class_wise_kd_loss(uniform, certain, 1.0).item() == pytest.approx(np.log(2), rel=1e-6)
    assert class_wise_kd_loss(certain, uniform, 1.0).item() == pytest.approx(10 - np.log(2), rel=1e-6)


@pytest.mark.parametrize("copies", [2, 8])
def test_the_divergence_is_averaged_over_the_batch_and_summed_over_the_classes(copies: int) -> None:
    logits, partner_logits = torch.randn(2, 1, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    one = class_wise_kd_loss(logits, partner_logits, 2.0).item()
    batch = class_wise_kd_loss(logits.repeat(copies, 1), partner_logits.repeat(copies, 1), 2.0)
    assert batch.item() == pytest.approx(one, rel=1e-5)
    # Splitting each class into equal parts does not change Σ p′ log(p′ / p); a mean over classes would shrink.
    split = class_wise_kd_loss(logits.repeat(1, copies), partner_logits.repeat(1, copies), 2.0)
    assert split.item() == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize(
    ("shape", "teacher_shape", "temperature", "problem"),
    [
        ((4, 5), (1, 5), 4.0, r"\(4, 5\) and \(1, 5\)"),
        ((4, 5), (5,), 4.0, r"\(4, 5\) and \(5,\)"),
        ((5,), (5,), 4.0, r"shape \(B, K\)"),  # divided by K
        ((4, 5, 7, 7), (4, 5, 7, 7), 4.0, r"shape \(B, K\)"),  # classes are not last
        ((4, 5), (4, 5), -4.0, "temperature is -4.0"),
        ((4, 5), (4, 5), 0.0, "temperature is 0.0"),
    ],
)
def test_logits_that_would_broadcast_and_temperatures_that_are_none_are_errors(
    shape: tuple[int, ...], teacher_shape: tuple[int, ...], temperature: float, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        class_wise_kd_loss(torch.zeros(shape), torch.zeros(teacher_shape), temperature)


@pytest.mark.parametrize("temperature", [20.0, 0.25])
def test_tfkd_is_label_smoothing_by_another_name(temperature: float) -> None:
    """(1 − α) · y + α · p_d is the smoothed label with ε = α · K · p_d(other); its optimum is p_y = 1 − ε + ε/K."""
    target, num_classes = torch.tensor([7]), 100
    teacher = softmax(np.where(one_hot(target.numpy(), num_classes) == 1, 0.99, 0.01 / 99) / temperature)
    smoothing = 0.1 * num_classes * teacher[0, 0]
    optimum = (1 - smoothing) * one_hot(target.numpy(), num_classes) + smoothing / num_classes
    assert temperature != 20 or optimum[0, 7] == pytest.approx(0.901, abs=1e-4)
    for logits in (np.log(optimum), np.random.RandomState(0).randn(1, num_classes)):
        ours, smoothed = (Batch(pixels(logits), target, torch.arange(1)) for _ in range(2))
        TfKDReg(temperature=temperature).forward_loss(Identity(), ours)["loss"].backward()
        CrossEntropy(smoothing=smoothing).forward_loss(Identity(), smoothed)["loss"].backward()
        torch.testing.assert_close(ours.images.grad, smoothed.images.grad, rtol=0, atol=1e-6)
        assert (ours.images.grad.abs().max() < 1e-6) == (logits[0, 7] == np.log(optimum)[0, 7])
