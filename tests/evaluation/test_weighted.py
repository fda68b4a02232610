"""Metrics of weighted images: a weight is a number of copies, and each new metric has another formula in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_logits import numpy_softmax, predictions
from scipy.optimize import brentq, minimize_scalar
from scipy.special import log_softmax
from sklearn.metrics import log_loss, roc_auc_score

from cskd_hf.evaluation import weighted
from cskd_hf.evaluation.confidence import augrc, debiased_ece, smooth_ece
from cskd_hf.evaluation.metrics import evaluate_predictions, image_scores, weighted_metrics
from cskd_hf.evaluation.rows import row_chunks


@pytest.mark.parametrize("tied", [False, True])
def test_a_weight_counts_as_copies_of_an_image_in_every_metric(tied: bool) -> None:
    logits, target = predictions()
    logits = logits.round() if tied else logits
    generator = np.random.default_rng(0)
    rows = generator.integers(203, size=(3, 203))
    weight = torch.from_numpy(np.stack([np.bincount(row, minlength=203) for row in rows])).double()
    train_images = [500, 50, 5, 1, 30, 30, 101]
    (scores,) = image_scores(logits, target, None, train_images=train_images)
    found = weighted_metrics(scores, weight)
    found["classwise_ece"] = 100 * weighted.classwise_error(row_chunks(logits, target), 7, weight, 20)
    for resample, row in enumerate(torch.from_numpy(rows)):
        expected = evaluate_predictions(logits[row], target[row], None, train_images=train_images)
        for name, value in found.items():
            # The best temperature and the neighbours are those among all images.
            if value is not None and not name.endswith(("_refinement", "_calibration")):
                assert value[resample].item() == pytest.approx(expected[name], rel=1e-9), name


def confidence_and_correct(num_images: int = 2_000) -> tuple[torch.Tensor, torch.Tensor, np.ndarray, np.ndarray]:
    logits, target = predictions(num_images)
    p = numpy_softmax(logits)
    return logits, target, p.max(axis=1), p.argmax(axis=1) == target.numpy()


def test_debiased_ece_subtracts_each_bins_variance() -> None:
    logits, target, confidence, correct = confidence_and_correct()
    total = 0.0
    for inside in (np.ceil(confidence * 20) == b for b in range(1, 21)):
        if inside.sum() > 1:
            gap = correct[inside].mean() - confidence[inside].mean()
            total += inside.sum() * (gap**2 - correct[inside].var(ddof=1) / inside.sum())
    assert debiased_ece(logits, target) == pytest.approx(100 * np.sqrt(total / len(correct)))


def test_debiased_ece_of_calibrated_predictions_is_near_zero_where_ece_is_not() -> None:
    generator = np.random.default_rng(0)
    logits = torch.from_numpy(generator.normal(size=(400, 5)) * 2)
    p = numpy_softmax(logits)
    target = torch.tensor([generator.choice(5, p=row) for row in p])
    values = evaluate_predictions(logits, target, None)
    assert values["debiased_ece"] < 0.7 * values["ece"]
    assert values["smooth_ece"] < values["ece"]


def test_smooth_ece_is_the_fixed_point_of_a_sum_of_reflected_gaussians() -> None:
    logits, target, confidence, correct = confidence_and_correct(300)
    t = np.linspace(0, 1, 1001)

    def error(bandwidth: float) -> float:
        images = np.concatenate([2 * n + sign * confidence for n in (-1, 0, 1) for sign in (-1, 1)])
        kernel = np.exp(-((t[:, None] - images) ** 2) / (2 * bandwidth**2)) / np.sqrt(2 * np.pi * bandwidth**2)
        return np.trapezoid(np.abs(kernel @ np.tile(correct - confidence, 6)), t) / len(correct)

    expected = brentq(lambda bandwidth: error(bandwidth) - bandwidth, 0.001, 1, xtol=1e-6)
    assert smooth_ece(logits, target) == pytest.approx(100 * expected, abs=1e-3)


def test_augrc_follows_from_accuracy_and_the_area_under_the_roc_curve() -> None:
    logits, target = predictions(num_classes=2)
    for values in (logits, logits.round()):  # the second has ties
        p, wrong = numpy_softmax(values), (values.argmax(dim=1) != target).numpy()
        area, error = roc_auc_score(~wrong, p.max(axis=1)), wrong.mean()
        expected = (1 - area) * error * (1 - error) + error**2 / 2
        assert augrc(values, target) == pytest.approx(100 * expected)


def test_refinement_is_the_score_at_the_best_temperature_and_calibration_the_rest() -> None:
    logits, target = predictions()
    values = evaluate_predictions(logits, target, None, temperature=3.0)

    def nll(temperature: float) -> float:
        return log_loss(target.numpy(), np.exp(log_softmax(logits.double().numpy() / temperature, axis=1)))

    best = minimize_scalar(nll, bounds=(0.1, 10), options={"xatol": 1e-8}).x
    one_hot = np.eye(7)[target.numpy()]
    brier = ((numpy_softmax(logits.double() / best) - one_hot) ** 2).sum(axis=1).mean()
    assert values["nll_refinement"] == pytest.approx(nll(best))
    assert values["brier_refinement"] == pytest.approx(brier, rel=1e-6)
    for score in ("nll", "brier"):
        assert values[f"{score}_calibration"] == values[score] - values[f"{score}_refinement"]
