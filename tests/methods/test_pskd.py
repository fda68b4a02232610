"""PS-KD: each epoch's target from the previous epoch's predictions, in NumPy, in any order of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Identity, cross_entropy, objective_of, one_hot, pixels, softmax

from cskd_hf.methods import PSKD, Batch
from cskd_hf.methods.pskd import refined_target

NUM_IMAGES, NUM_EPOCHS = 6, 5
LABELS = np.array([0, 1, 2, 3, 0, 1])


def build(method: PSKD) -> Any:
    return method.build(Identity(), EXPERIMENT._replace(num_images=NUM_IMAGES, num_epochs=NUM_EPOCHS))


def logits_of(epoch: int) -> np.ndarray:
    """The network's logits for each image in an epoch."""
    return np.random.RandomState(epoch).randn(NUM_IMAGES, NUM_CLASSES) * 2


def step(method: PSKD, module: Any, epoch: int, rows: np.ndarray) -> dict[str, torch.Tensor]:
    batch = Batch(pixels(logits_of(epoch)[rows]), torch.tensor(LABELS[rows]), torch.tensor(rows))
    return method.forward_loss(module, batch)


@pytest.mark.parametrize("last_alpha", [0.8, 1.0, 0.3])
def test_the_target_mixes_the_label_and_the_previous_epochs_prediction(last_alpha):
    """(1 − α_t) · y + α_t · P_{t−1}, α_t = α_T · t / T, t from 1; the first epoch has only labels."""
    method = PSKD(last_alpha=last_alpha)
    module = build(method)
    for epoch in range(1, NUM_EPOCHS + 1):
        order = np.random.RandomState(100 + epoch).permutation(NUM_IMAGES)  # a new order, and a short batch
        alpha = 0.0 if epoch == 1 else last_alpha * epoch / NUM_EPOCHS
        for rows in (order[:4], order[4:]):
            result = step(method, module, epoch, rows)
            # P is stored in half precision and rescaled to sum to 1.
            before = softmax(logits_of(epoch - 1)[rows]).astype(np.float16).astype(np.float64)
            before /= before.sum(axis=1, keepdims=True)
            target = (1 - alpha) * one_hot(LABELS[rows]) + alpha * before
            assert result["loss"].item() == pytest.approx(cross_entropy(logits_of(epoch)[rows], target), rel=1e-5)
            assert result["alpha"].item() == pytest.approx(alpha)
    assert alpha == pytest.approx(last_alpha)


def test_predictions_are_rescaled_to_sum_to_one():
    target, share = torch.tensor([1, 0]), torch.tensor([0.5, 0.0])
    predictions = torch.tensor([[0.2, 0.1, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])  # no prediction yet
    refined = refined_target(target, predictions, share)
    assert refined.tolist() == [pytest.approx([0.25, 0.625, 0.125, 0.0]), [1, 0, 0, 0]]


def test_alpha_counts_an_images_own_visits():
    method = PSKD(last_alpha=1.0)
    module = build(method)
    step(method, module, 1, np.arange(NUM_IMAGES))
    step(method, module, 2, np.array([0, 1]))
    result = step(method, module, 3, np.array([0, 5]))  # their third and second visits
    assert result["alpha"].item() == pytest.approx((3 + 2) / 2 / NUM_EPOCHS)
    last = [softmax(logits_of(2)[[0]])[0], softmax(logits_of(1)[[5]])[0]]
    share = np.array([[3], [2]]) / NUM_EPOCHS
    target = (1 - share) * one_hot(LABELS[[0, 5]]) + share * np.array(last)
    assert result["loss"].item() == pytest.approx(cross_entropy(logits_of(3)[[0, 5]], target), rel=1e-3)


def test_alpha_is_capped_after_the_last_epoch():
    method = PSKD(last_alpha=0.8)
    module = build(method)
    for epoch in range(1, NUM_EPOCHS + 4):
        result = step(method, module, epoch, np.arange(NUM_IMAGES))
    assert result["alpha"].item() == pytest.approx(0.8)


def test_the_gradient_treats_the_past_as_a_constant():
    """(softmax(z) − target) / B."""
    method = PSKD(last_alpha=1.0)
    module = build(method)
    rows = np.arange(NUM_IMAGES)
    step(method, module, 1, rows)["loss"].backward()
    batch = Batch(pixels(logits_of(2)), torch.tensor(LABELS), torch.tensor(rows))
    method.forward_loss(module, batch)["loss"].backward()
    target = 0.6 * one_hot(LABELS) + 0.4 * softmax(logits_of(1))
    expected = (softmax(logits_of(2)) - target) / NUM_IMAGES
    np.testing.assert_allclose(batch.images.grad.flatten(1).numpy(), expected, rtol=0, atol=1e-4)


def test_extreme_logits_are_stored_as_probabilities():
    method = PSKD(last_alpha=1.0)
    module = build(method)
    logits = np.array([[1e4, -1e4, 0, 0], [-1e4, -1e4, -1e4, 1e4]])
    for _ in range(2):
        batch = Batch(pixels(logits), torch.tensor([1, 3]), torch.tensor([0, 1]))
        result = method.forward_loss(module, batch)
        result["loss"].backward()
    assert result["loss"].isfinite()
    assert batch.images.grad.isfinite().all()
    assert module.memory.recall(torch.tensor([0, 1]))[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_only_training_steps_write_to_the_memory():
    objective = objective_of(PSKD())
    module: Any = objective.module
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    objective(Batch(images, torch.arange(4), torch.tensor([7, 39, 0, 20])))
    assert module.memory.visits.nonzero().flatten().tolist() == [0, 7, 20, 39]
    before = module.memory.predictions.clone()
    PSKD().export(module).eval()(torch.randn(2, 3, 16, 16))
    module.eval()(torch.randn(2, 3, 16, 16))
    assert torch.equal(module.memory.predictions, before)
