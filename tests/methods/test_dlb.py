"""DLB: the last update's predictions as teachers, in NumPy, over several updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Identity, cross_entropy, log_softmax, one_hot, pixels, softmax

from cskd_hf.methods import DLB, Batch

B = 3
LABELS = np.arange(12) % NUM_CLASSES


def step(method: DLB, module: Any, logits: np.ndarray, rows: np.ndarray) -> tuple[dict[str, Any], np.ndarray]:
    """The loss of [new | last] rows and its gradient with respect to their logits."""
    images = pixels(logits)
    result = method.forward_loss(module, Batch(images, torch.tensor(LABELS[rows]), torch.tensor(rows)))
    result["loss"].backward()
    assert images.grad is not None
    return result, images.grad.flatten(1).double().numpy()


@pytest.mark.parametrize(("temperature", "weight"), [(3.0, 1.0), (1.0, 0.5), (4.0, 0.0)])
def test_the_last_updates_images_learn_from_their_predictions_of_then(temperature: float, weight: float) -> None:
    method = DLB(temperature=temperature, distill_loss_weight=weight)
    module = method.build(Identity(), EXPERIMENT._replace(num_images=12))
    random = np.random.RandomState(0)
    order = random.permutation(12)
    past = np.zeros((12, NUM_CLASSES))
    for update in range(1, 4):
        rows = np.concatenate((order[update * B :][:B], order[(update - 1) * B :][:B]))
        z = random.randn(2 * B, NUM_CLASSES) * 2
        result, gradient = step(method, module, z, rows)
        last, y, teacher = z[B:], LABELS[rows], past[rows[B:]]
        kd, expected = 0.0, (softmax(z) - one_hot(y)) / (2 * B)
        if update > 1:  # before, the memory has no predictions
            kd = (teacher * (np.log(teacher) - log_softmax(last / temperature))).sum(axis=1).mean() * temperature**2
            expected[B:] += weight * temperature * (softmax(last / temperature) - teacher) / B
        assert result["task_loss"].item() == pytest.approx(cross_entropy(z, y), rel=1e-5)
        assert result["kd_loss"].item() == pytest.approx(kd, rel=1e-4)
        assert result["loss"].item() == pytest.approx(cross_entropy(z, y) + weight * kd, rel=1e-4)
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4)
        new = softmax(z[:B] / temperature).astype(np.float16).astype(np.float64)  # the memory's precision
        past[rows[:B]] = new / new.sum(axis=1, keepdims=True)


def test_padding_is_neither_taught_nor_remembered() -> None:
    module: Any = DLB().build(Identity(), EXPERIMENT)
    for _ in range(2):
        result, _ = step(DLB(), module, np.ones((2 * B, NUM_CLASSES)), np.full(2 * B, -1))
    assert result["kd_loss"] == 0
    assert not module.memory.recall(torch.arange(12))[1].any()
