"""PS-KD: each epoch's target from the epoch before, in NumPy, whatever the order of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from method_cases import EXPERIMENT, NUM_CLASSES, Fixed, cross_entropy, objective_of, one_hot, pixels, softmax

from cskd_hf.methods import PSKD, Batch, CrossEntropy
from cskd_hf.methods.pskd import refined_target

NUM_IMAGES, NUM_EPOCHS = 6, 5
LABELS = np.array([0, 1, 2, 3, 0, 1])


def remembering(method: PSKD) -> Any:
    return method.build(Fixed(), EXPERIMENT._replace(num_images=NUM_IMAGES, num_epochs=NUM_EPOCHS))


def logits_of(epoch: int) -> np.ndarray:
    """What the network answers for each image in an epoch."""
    return np.random.RandomState(epoch).randn(NUM_IMAGES, NUM_CLASSES) * 2


def step(method: PSKD, module: Any, epoch: int, rows: np.ndarray) -> dict[str, torch.Tensor]:
    batch = Batch(pixels(logits_of(epoch)[rows]), torch.tensor(LABELS[rows]), torch.tensor(rows))
    return method.forward_loss(module, batch)


@pytest.mark.parametrize("last_alpha", [0.8, 1.0, 0.3])
def test_each_epochs_target_is_the_label_and_the_prediction_of_the_epoch_before(last_alpha):
    """(1 − α_t) · y + α_t · P_{t−1}, α_t = α_T · t / T, t from 1; the first epoch has labels alone."""
    method = PSKD(last_alpha=last_alpha)
    module = remembering(method)
    for epoch in range(1, NUM_EPOCHS + 1):
        order = np.random.RandomState(100 + epoch).permutation(NUM_IMAGES)  # shuffled anew, in short batches too
        alpha = 0.0 if epoch == 1 else last_alpha * epoch / NUM_EPOCHS
        for rows in (order[:4], order[4:]):
            result = step(method, module, epoch, rows)
            # P is kept as half floats and scaled back to a sum of one.
            before = softmax(logits_of(epoch - 1)[rows]).astype(np.float16).astype(np.float64)
            before /= before.sum(axis=1, keepdims=True)
            target = (1 - alpha) * one_hot(LABELS[rows]) + alpha * before
            assert result["loss"].item() == pytest.approx(cross_entropy(logits_of(epoch)[rows], target), rel=1e-5)
            assert result["alpha"].item() == pytest.approx(alpha)
    assert alpha == pytest.approx(last_alpha)


def test_the_first_epoch_is_cross_entropy_to_the_last_bit_but_rounding():
    method = PSKD()
    module = remembering(method)
    batch = Batch(pixels(logits_of(1)), torch.tensor(LABELS), torch.arange(NUM_IMAGES))
    one, two = method.forward_loss(module, batch), CrossEntropy().forward_loss(Fixed(), batch)
    torch.testing.assert_close(one["loss"], two["loss"], rtol=1e-6, atol=0)


def test_a_half_floats_sum_is_scaled_back_to_one():
    target, share = torch.tensor([1, 0]), torch.tensor([0.5, 0.0])
    predictions = torch.tensor([[0.2, 0.1, 0.1, 0.0], [0.0, 0.0, 0.0, 0.0]])  # the second is not known yet
    found = refined_target(target, predictions, share)
    assert found.tolist() == [pytest.approx([0.25, 0.625, 0.125, 0.0]), [1, 0, 0, 0]]


def test_an_image_left_out_of_an_epoch_goes_on_from_when_it_was_last_seen():
    method = PSKD(last_alpha=1.0)
    module = remembering(method)
    step(method, module, 1, np.arange(NUM_IMAGES))
    step(method, module, 2, np.array([0, 1]))
    result = step(method, module, 3, np.array([0, 5]))  # a third and a second visit
    assert result["alpha"].item() == pytest.approx((3 + 2) / 2 / NUM_EPOCHS)
    seen = [softmax(logits_of(2)[[0]])[0], softmax(logits_of(1)[[5]])[0]]
    share = np.array([[3], [2]]) / NUM_EPOCHS
    target = (1 - share) * one_hot(LABELS[[0, 5]]) + share * np.array(seen)
    assert result["loss"].item() == pytest.approx(cross_entropy(logits_of(3)[[0, 5]], target), rel=1e-3)


def test_more_visits_than_epochs_do_not_carry_the_share_beyond_its_last():
    method = PSKD(last_alpha=0.8)
    module = remembering(method)
    for epoch in range(1, NUM_EPOCHS + 4):
        result = step(method, module, epoch, np.arange(NUM_IMAGES))
    assert result["alpha"].item() == pytest.approx(0.8)


def test_the_gradient_takes_the_past_as_a_constant():
    """(softmax(z) − target) / B."""
    method = PSKD(last_alpha=1.0)
    module = remembering(method)
    rows = np.arange(NUM_IMAGES)
    step(method, module, 1, rows)["loss"].backward()
    batch = Batch(pixels(logits_of(2)), torch.tensor(LABELS), torch.tensor(rows))
    method.forward_loss(module, batch)["loss"].backward()
    target = 0.6 * one_hot(LABELS) + 0.4 * softmax(logits_of(1))
    expected = (softmax(logits_of(2)) - target) / NUM_IMAGES
    np.testing.assert_allclose(batch.images.grad.flatten(1).numpy(), expected, rtol=0, atol=1e-4)


def test_extreme_logits_are_remembered_as_probabilities():
    method = PSKD(last_alpha=1.0)
    module = remembering(method)
    logits = np.array([[1e4, -1e4, 0, 0], [-1e4, -1e4, -1e4, 1e4]])
    for _ in range(2):
        batch = Batch(pixels(logits), torch.tensor([1, 3]), torch.tensor([0, 1]))
        result = method.forward_loss(module, batch)
        result["loss"].backward()
    assert result["loss"].isfinite()
    assert batch.images.grad.isfinite().all()
    assert module.memory.recall(torch.tensor([0, 1]))[0].tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


def test_a_training_forward_remembers_and_a_test_does_not():
    objective = objective_of(PSKD())
    module: Any = objective.module
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
    objective(Batch(images, torch.arange(4), torch.tensor([7, 39, 0, 20])))
    assert module.memory.visits.nonzero().flatten().tolist() == [0, 7, 20, 39]
    kept = module.memory.predictions.clone()
    PSKD().export(module).eval()(torch.randn(2, 3, 16, 16))
    module.eval()(torch.randn(2, 3, 16, 16))
    assert torch.equal(module.memory.predictions, kept)
