"""Prediction sets: scores, quantile, coverage and what is measured of the sets."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from random_logits import numpy_softmax, predictions
from torch import Tensor

from cskd_hf.evaluation.conformal import (
    SCORES,
    Score,
    class_scores,
    conformal_quantile,
    expected_coverage,
    fewest_images,
    measure_sets,
    prediction_sets,
)

HUNDREDTHS = [number / 100 for number in range(1, 100)]


def test_the_quantile_is_the_smallest_score_that_covers_enough_images_and_the_new_one() -> None:
    for coverage in HUNDREDTHS:
        share, fewest = Fraction(round(100 * coverage), 100), fewest_images(coverage)
        for images in {fewest, 99, 137} - set(range(fewest)):
            found = conformal_quantile(torch.arange(1, images + 1).double().flip(0), coverage)
            assert found >= (images + 1) * share > found - 1, (coverage, images)
        with pytest.raises(ValueError, match=rf"^{fewest - 1} hold-out images; a coverage of .* needs {fewest}$"):
            conformal_quantile(torch.zeros(fewest - 1), coverage)


@pytest.mark.parametrize(
    ("classes", "score", "problem"), [(3, "raps", "score is 'raps'; allowed: lac, aps"), (2, "lac", "other K")]
)
def test_a_score_that_does_not_exist_and_images_of_other_classes_are_errors(
    classes: int, score: Any, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        prediction_sets(torch.zeros(1, classes), torch.zeros(20, 3), torch.zeros(20).long(), 0.9, score)


def test_a_score_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"scores\[1\]"):
        conformal_quantile(torch.tensor([0.0, torch.nan, 1.0]), 0.5)


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, 90.0, float("nan")])
def test_a_coverage_is_between_0_and_1(coverage: float) -> None:
    with pytest.raises(ValueError, match="needs a number between 0 and 1"):
        conformal_quantile(torch.zeros(1000), coverage)


def test_the_sets_of_lac_hold_the_classes_of_at_least_the_quantile_of_1_minus_p() -> None:
    (holdout, target), (logits, _) = predictions(57, 5), predictions(40, 5, seed=1)
    p, q = (numpy_softmax(part / 1.7) for part in (holdout, logits))
    for coverage in (0.3, 0.8, 0.95):
        rank = int(np.ceil(58 * coverage))
        least = 1 - np.sort(1 - p[range(57), target])[rank - 1]
        sets = prediction_sets(logits, holdout, target, coverage, "lac", temperature=1.7)
        np.testing.assert_array_equal(sets, q >= least)


def test_the_score_of_aps_grows_with_the_probability_of_likelier_classes_and_a_share_of_its_own() -> None:
    logits, _ = predictions(30, 6)
    logits[0, 2], share = -torch.inf, torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    p = numpy_softmax(logits)
    likelier = (p[:, None, :] > p[:, :, None]) @ p[..., None]
    expected = likelier[..., 0] + share.numpy()[:, None] * p
    found = class_scores(logits.double(), "aps", share)
    np.testing.assert_allclose(1 - (-found).exp(), expected, atol=1e-9)


def rounded(logits: Tensor) -> Tensor:
    return logits.round()


def huge(logits: Tensor) -> Tensor:
    """All probabilities round to 0 or 1."""
    return 1e4 * logits


def impossible(logits: Tensor) -> Tensor:
    """In a third of the images, the least likely class has probability 0, although it may be the target."""
    logits[::3].scatter_(1, logits[::3].argmin(dim=1, keepdim=True), -torch.inf)
    return logits


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(
    ("change", "num_classes", "images", "coverage"),
    [
        (None, 2, 19, 0.9),
        (None, 5, 30, 0.75),
        (huge, 5, 30, 0.75),
        (rounded, 4, 25, 0.8),
        (impossible, 3, 40, 0.95),
        (torch.zeros_like, 4, 25, 0.8),
    ],
    ids=["two classes", "five classes", "huge logits", "ties", "-inf", "constant"],
)
def test_sets_cover_the_target_as_often_as_promised_over_many_hold_out_sets(
    score: Score, change: object, num_classes: int, images: int, coverage: float
) -> None:
    draws, new = 200, 40
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(draws * (images + new), num_classes, generator=generator)
    target = torch.multinomial((logits / 1.5).softmax(dim=1), 1, generator=generator).flatten()
    if callable(change):
        logits = change(logits)
    covered = []
    parts = zip(logits.split(images + new), target.split(images + new), strict=True)
    for seed, (rows, labels) in enumerate(parts):
        sets = prediction_sets(rows[images:], rows[:images], labels[:images], coverage, score, seed=2 * seed)
        covered.append(sets[torch.arange(new), labels[images:]].double().mean().item())
    error = np.std(covered) / draws**0.5
    assert np.mean(covered) > coverage - 3 * error
    if change in (None, huge):  # without ties it is not much more either
        assert np.mean(covered) < coverage + 1 / (images + 1) + 3 * error


def test_a_perfect_model_has_sets_of_at_most_its_class() -> None:
    target = torch.arange(40) % 4
    logits = 1000.0 * torch.nn.functional.one_hot(target, 4)
    for score in SCORES:
        sets = prediction_sets(logits, logits, target, 0.9, score)
        assert sets.sum(dim=1).max() == 1
        assert sets.gather(1, target[:, None]).double().mean() >= 0.75
    assert torch.equal(prediction_sets(logits, logits, target, 0.9), torch.nn.functional.one_hot(target, 4).bool())


@pytest.mark.parametrize("score", SCORES)
def test_if_too_many_targets_are_impossible_every_class_is_in_the_set(score: Score) -> None:
    holdout = torch.zeros(20, 3).index_fill(1, torch.tensor(2), -torch.inf)
    target = torch.tensor([0] * 15 + [2] * 5)
    assert prediction_sets(holdout[:4], holdout, target, 0.9, score).all()


def test_the_results_are_those_of_counting() -> None:
    generator = np.random.default_rng(0)
    sets, target = generator.random((200, 6)) < 0.4, generator.integers(5, size=200)  # class 5 has no image
    found = measure_sets(torch.from_numpy(sets), torch.from_numpy(target), 0.7)
    covered, size = sets[range(200), target], sets.sum(axis=1)
    of_class = [covered[target == label].mean() for label in range(5)]
    worst = int(np.argmin(of_class))
    expected = {
        "found": 100 * covered.mean(),
        "mean_size": size.mean(),
        "median_size": np.median(size),
        "empty": 100 * (size == 0).mean(),
        "singleton": 100 * (size == 1).mean(),
        "class_gap": 100 * np.abs(np.array(of_class) - 0.7).mean(),
        "worst_class": worst,
        "worst_class_coverage": 100 * of_class[worst],
        "worst_class_images": (target == worst).sum(),
    }
    low, high = found.pop("interval")
    assert found == pytest.approx(expected)
    assert low < found["found"] < high


def test_the_expected_coverage_counts_the_chance_of_both_sets() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((4000, 49 + 30))
    threshold = np.sort(scores[:, :49], axis=1)[:, 45 - 1]  # ⌈50 · 0.9⌉
    shares = (scores[:, 49:] <= threshold[:, None]).mean(axis=1)
    assert expected_coverage(49, 0.9, 30) == pytest.approx(np.quantile(shares, [0.025, 0.975]), abs=1.01 / 30)
