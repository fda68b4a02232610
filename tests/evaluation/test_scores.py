"""Top-k error and the proper scores, NLL and Brier, against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from random_logits import numpy_softmax, predictions
from sklearn.metrics import log_loss, top_k_accuracy_score

from cskd_hf.evaluation.metrics import brier, nll, top_k_error

# top-k error


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_error_agrees_with_scikit_learn(k: int) -> None:
    logits, target = predictions()
    accuracy = top_k_accuracy_score(target.numpy(), logits.numpy(), k=k, labels=range(7))
    assert top_k_error(logits, target, k) == pytest.approx(100 * (1 - accuracy))


def test_equal_logits_rank_by_class_index_as_in_argmax() -> None:
    assert top_k_error(torch.zeros(4, 4), torch.arange(4), 3) == 25.0
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (300, 6), generator=generator).float()
    target = torch.randint(6, (300,), generator=generator)
    wrong = np.mean(np.argmax(logits.numpy(), axis=1) != target.numpy())
    assert top_k_error(logits, target, 1) == pytest.approx(100 * wrong)


# proper scores


def test_nll_agrees_with_scikit_learn() -> None:
    logits, target = predictions()
    assert nll(logits, target) == pytest.approx(log_loss(target.numpy(), numpy_softmax(logits), labels=range(7)))


def test_nll_is_computed_in_float64() -> None:
    assert nll(torch.tensor([[20.0, 0.0]]), torch.tensor([0])) == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_nll_is_infinite_if_a_target_has_probability_zero() -> None:
    logits = torch.tensor([[0.0, -math.inf], [0.0, 1.0]])
    assert nll(logits, torch.tensor([1, 1])) == math.inf
    assert nll(logits, torch.tensor([0, 1])) == pytest.approx(math.log1p(math.exp(-1)) / 2)


def test_brier_agrees_with_the_sum_over_images_and_classes() -> None:
    logits, target = predictions()
    total = 0.0
    for p, label in zip(numpy_softmax(logits), target.tolist(), strict=True):
        total += sum((p[c] - (c == label)) ** 2 for c in range(7))
    assert brier(logits, target) == pytest.approx(total / len(target))


def test_brier_runs_from_0_to_2() -> None:
    certain = torch.tensor([[1000.0, 0.0]])
    assert brier(certain, torch.tensor([0])) == 0.0
    assert brier(certain, torch.tensor([1])) == 2.0
