"""Calibration errors, and AURC, which ranks by confidence."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from random_logits import numpy_softmax, predictions
from torch import Tensor

from cskd_hf.evaluation.confidence import (
    adaptive_ece,
    augrc,
    aurc,
    aurc_logit_norm,
    classwise_ece,
    ece,
    reliability_bins,
)


def two_class(probability_of_0: list[float]) -> Tensor:
    """Logits of two classes with the given probabilities of class 0."""
    p = torch.tensor(probability_of_0, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def numpy_binned_gap(score: np.ndarray, hit: np.ndarray, num_bins: int) -> float:
    """Σ |B|/N · |mean hit − mean score|, bin by bin, percent."""
    total = 0.0
    for b in range(num_bins):
        inside = (score > b / num_bins) & (score <= (b + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - score[inside].mean())
    return 100 * total


# calibration


@pytest.mark.parametrize("num_bins", [1, 10, 20])
def test_ece_agrees_with_a_loop_over_bins(num_bins: int) -> None:
    logits, target = predictions()
    p = numpy_softmax(logits)
    expected = numpy_binned_gap(p.max(axis=1), p.argmax(axis=1) == target.numpy(), num_bins)
    assert ece(logits, target, num_bins) == pytest.approx(expected)


def test_a_confidence_of_exactly_1_lies_in_the_last_bin() -> None:
    logits, target = torch.tensor([[1000.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
    assert reliability_bins(logits, target, 20).count.tolist() == [0] * 19 + [4]
    assert ece(logits, target) == pytest.approx(25.0)
    assert adaptive_ece(logits, target) == pytest.approx(25.0)
    assert classwise_ece(logits, target) == pytest.approx(25.0)


@pytest.mark.parametrize(("num_classes", "num_bins"), [(2, 20), (5, 20), (10, 20), (20, 20), (5, 35), (10, 50)])
def test_a_confidence_on_an_edge_belongs_to_the_bin_that_ends_there(num_classes: int, num_bins: int) -> None:
    bins = reliability_bins(torch.zeros(3, num_classes), torch.zeros(3, dtype=torch.int64), num_bins)
    assert bins.count.nonzero().flatten().tolist() == [num_bins // num_classes - 1]


def test_empty_bins_are_nan_and_full_ones_hold_means() -> None:
    bins = reliability_bins(two_class([0.9, 0.9, 0.7]), torch.tensor([0, 1, 0]), 5)
    assert bins.count.tolist() == [0, 0, 0, 1, 2]
    filled = bins.count > 0
    assert bins.accuracy[filled].tolist() == [1.0, 0.5]
    assert bins.confidence[filled].tolist() == pytest.approx([0.7, 0.9])
    assert bins.accuracy[~filled].isnan().all()
    assert bins.confidence[~filled].isnan().all()


@pytest.mark.parametrize(("num_images", "num_bins"), [(200, 20), (203, 20), (13, 20), (203, 1)])
def test_adaptive_ece_agrees_with_a_loop_over_sorted_runs(num_images: int, num_bins: int) -> None:
    logits, target = predictions(num_images)
    p = numpy_softmax(logits)
    order = np.argsort(-p.max(axis=1))
    confidence, correct = p.max(axis=1)[order], (p.argmax(axis=1) == target.numpy())[order]
    expected = 0.0
    for run in np.array_split(np.arange(num_images), num_bins):
        if len(run):
            expected += len(run) / num_images * abs(correct[run].mean() - confidence[run].mean())
    assert adaptive_ece(logits, target, num_bins) == pytest.approx(100 * expected)


def test_adaptive_ece_of_one_shared_confidence_is_the_gap_of_the_whole_set() -> None:
    logits = two_class([0.9] * 40)
    target = torch.tensor([0] * 20 + [1] * 20)  # row by row, the first runs would be all right and the last all wrong
    assert adaptive_ece(logits, target) == pytest.approx(40.0)


@pytest.mark.parametrize("num_classes", [2, 7, 64, 65, 130])
def test_classwise_ece_agrees_with_a_loop_over_classes(num_classes: int) -> None:
    logits, target = predictions(num_classes=num_classes)
    p = numpy_softmax(logits)
    expected = np.mean([numpy_binned_gap(p[:, c], target.numpy() == c, 20) for c in range(num_classes)])
    assert classwise_ece(logits, target) == pytest.approx(expected)


# ranking by confidence


def test_aurc_agrees_with_a_loop_over_coverages() -> None:
    logits, target = predictions()
    p = numpy_softmax(logits)
    wrong = (p.argmax(axis=1) != target.numpy())[np.argsort(-p.max(axis=1))]
    risks = [wrong[:k].mean() for k in range(1, len(wrong) + 1)]
    assert aurc(logits, target) == pytest.approx(100 * np.mean(risks))


def test_aurc_is_the_mean_over_all_orders_of_tied_confidences() -> None:
    logits = two_class([0.9, 0.8, 0.8, 0.8, 0.8, 0.6])
    target = torch.tensor([1, 0, 0, 1, 0, 1])
    areas = []
    for tied in permutations([0, 0, 1, 0]):
        wrong = [1, *tied, 1]
        areas.append(np.mean([np.mean(wrong[:k]) for k in range(1, 7)]))
    assert aurc(logits, target) == pytest.approx(100 * np.mean(areas))


@pytest.mark.parametrize("scale", [1e-2, 100.0])
def test_the_ranking_of_two_classes_does_not_depend_on_their_scale(scale: float) -> None:
    logits, target = predictions(num_classes=2)  # times 100, most probabilities round to 1
    for metric in (aurc, augrc):
        assert metric(scale * logits.double(), target) == pytest.approx(metric(logits, target))


def test_confidences_that_are_equal_up_to_rounding_tie() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.stack([torch.linspace(-1, 2, 30)[torch.randperm(30, generator=generator)] for _ in range(40)])
    target = logits.argmax(dim=1)
    target[:20] = (target[:20] + 1) % 30
    assert len(logits.double().softmax(dim=1).amax(dim=1).unique()) > 1
    assert aurc(logits, target) == pytest.approx(50.0)
    assert augrc(logits, target) == pytest.approx(25.0)
    assert adaptive_ece(logits, target) == pytest.approx(ece(logits, target, num_bins=1))


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_aurc_of_normalised_logits_agrees_with_a_loop_over_coverages(scale: float) -> None:
    logits, target = predictions()
    z = logits.numpy().astype(np.float64)
    z -= z.sum(axis=1, keepdims=True) / z.shape[1]
    confidence = z.max(axis=1) / np.sqrt((z**2).sum(axis=1))
    wrong = (z.argmax(axis=1) != target.numpy())[np.argsort(-confidence)]
    expected = 100 * np.mean([wrong[:k].mean() for k in range(1, len(wrong) + 1)])
    assert expected != pytest.approx(aurc(logits, target))
    # neither a temperature, the same for all images or not, nor a shift changes the ranking
    rescaled = logits.double() * torch.linspace(scale, 1, len(logits))[:, None] + 3
    for values in (logits, rescaled):
        assert aurc_logit_norm(values, target) == pytest.approx(expected)


def test_normalised_logits_of_two_classes_tie_and_undefined_ones_rank_last() -> None:
    logits, target = predictions(num_classes=2)
    error = 100 * (logits.argmax(dim=1) != target).double().mean().item()
    assert aurc_logit_norm(logits, target) == pytest.approx(error)
    for wrong in ([1.0, 1.0, 1.0], [5.0, 1.0, -torch.inf]):
        logits = torch.tensor([wrong, [2.0, 1.0, 0.0], [1.0, 2.0, 0.0]])
        assert aurc_logit_norm(logits, torch.tensor([2, 0, 1])) == pytest.approx(100 * (0 + 0 + 1 / 3) / 3)
