"""Tf-KD_reg against its formula in NumPy, and as label smoothing at T = 1."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from method_cases import NUM_CLASSES, Fixed, cross_entropy, kl, one_hot, pixels

from cskd_hf.methods import Batch, CrossEntropy, TfKDReg

LOGITS = np.random.RandomState(0).randn(6, NUM_CLASSES) * 3
TARGET = np.array([0, 1, 2, 3, 1, 0])


def batch_of() -> Batch:
    return Batch(pixels(LOGITS), torch.tensor(TARGET), torch.arange(6))


def teacher(correct: float) -> np.ndarray:
    """p_d: `correct` for the true class, the rest shared by the others."""
    return np.where(one_hot(TARGET) == 1, correct, (1 - correct) / (NUM_CLASSES - 1))


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
@pytest.mark.parametrize("correct", [0.9, 0.99])
def test_the_loss_is_the_papers(correct, temperature, alpha):
    method = TfKDReg(correct_probability=correct, temperature=temperature, distill_loss_weight=alpha)
    result = method.forward_loss(Fixed(), batch_of())
    task = cross_entropy(LOGITS, TARGET)
    expected_kd = kl(np.log(teacher(correct)), LOGITS, temperature)
    assert result["task_loss"].item() == pytest.approx(task, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(expected_kd, rel=1e-4)
    assert result["loss"].item() == pytest.approx((1 - alpha) * task + alpha * expected_kd, rel=1e-4)


def test_the_gradient_pulls_towards_the_virtual_teacher():
    """T · (softmax(z / T) − p_d at T) / B, the teacher being p_d^{1/T}, scaled to one."""
    temperature = 5.0
    batch = batch_of()
    TfKDReg(temperature=temperature, distill_loss_weight=1.0).forward_loss(Fixed(), batch)["loss"].backward()
    soft = np.exp(LOGITS / temperature) / np.exp(LOGITS / temperature).sum(axis=1, keepdims=True)
    virtual = teacher(0.99) ** (1 / temperature)
    expected = temperature * (soft - virtual / virtual.sum(axis=1, keepdims=True)) / 6
    np.testing.assert_allclose(batch.images.grad.flatten(1).numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5])
@pytest.mark.parametrize("correct", [0.9, 0.99])
def test_at_temperature_one_its_gradient_is_that_of_label_smoothing(correct, alpha):
    """(1 − α)·y + α·p_d is the smoothed label of ε = α (1 − a) K / (K − 1)."""
    smoothing = alpha * (1 - correct) * NUM_CLASSES / (NUM_CLASSES - 1)
    one, two = batch_of(), batch_of()
    method = TfKDReg(correct_probability=correct, temperature=1.0, distill_loss_weight=alpha)
    ours = method.forward_loss(Fixed(), one)["loss"]
    smooth = CrossEntropy(smoothing=smoothing).forward_loss(Fixed(), two)["loss"]
    ours.backward()
    smooth.backward()
    torch.testing.assert_close(one.images.grad, two.images.grad, rtol=1e-4, atol=1e-7)
    # The values differ by a constant, the teacher's entropy.
    entropy = -(teacher(correct) * np.log(teacher(correct))).sum(axis=1).mean()
    assert ours.item() == pytest.approx(smooth.item() - alpha * entropy, rel=1e-5)
