from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cskd_hf.results.metrics import (
    DEFINITIONS,
    METRICS,
    adaptive_ece,
    aurc,
    brier,
    classwise_ece,
    ece,
    evaluate_predictions,
    nll,
    recall_at_1,
    reliability_bins,
    top_k_error,
)

NAMES = ["top1_error", "top5_error", "nll", "brier", "ece", "adaptive_ece", "classwise_ece", "aurc", "recall_at_1"]


def predictions(num_images: int = 203, num_classes: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random logits that know something of the target, so that no metric is at an end of its range."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    logits = 2 * torch.randn(num_images, num_classes, generator=generator)
    logits[torch.arange(num_images), target] += 1.5
    return logits, target


def two_class(probability_of_0: list[float]) -> Tensor:
    """Logits of two classes with the given probabilities of class 0."""
    p = torch.tensor(probability_of_0, dtype=torch.float64)
    return torch.stack([p.log(), (1 - p).log()], dim=1)


def numpy_softmax(logits: Tensor) -> np.ndarray:
    z = logits.numpy().astype(np.float64)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def numpy_binned_gap(score: np.ndarray, hit: np.ndarray, num_bins: int) -> float:
    """Σ |B|/N · |mean hit − mean score|, bin by bin, percent."""
    total = 0.0
    for b in range(num_bins):
        inside = (score > b / num_bins) & (score <= (b + 1) / num_bins)
        if inside.any():
            total += inside.mean() * abs(hit[inside].mean() - score[inside].mean())
    return 100 * total


# top-k error


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_error_agrees_with_scikit_learn(k: int) -> None:
    logits, target = predictions()
    accuracy = top_k_accuracy_score(target.numpy(), logits.numpy(), k=k, labels=range(7))
    assert top_k_error(logits, target, k) == pytest.approx(100 * (1 - accuracy))


def test_top_k_error_of_a_small_case_is_counted_by_hand() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0]] * 4)
    target = torch.tensor([0, 1, 2, 2])
    assert [top_k_error(logits, target, k) for k in (1, 2, 3, 5)] == [75.0, 50.0, 0.0, 0.0]


def test_equal_logits_are_right_only_for_the_first_classes() -> None:
    assert top_k_error(torch.zeros(4, 4), torch.arange(4), 1) == 75.0
    assert top_k_error(torch.zeros(4, 4), torch.arange(4), 3) == 25.0


def test_top1_error_is_the_error_of_argmax_also_among_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (300, 6), generator=generator).float()
    target = torch.randint(6, (300,), generator=generator)
    wrong = np.mean(np.argmax(logits.numpy(), axis=1) != target.numpy())
    assert top_k_error(logits, target, 1) == pytest.approx(100 * wrong)


# proper scores


def test_nll_agrees_with_scikit_learn() -> None:
    logits, target = predictions()
    assert nll(logits, target) == pytest.approx(log_loss(target.numpy(), numpy_softmax(logits), labels=range(7)))


def test_nll_of_uniform_probabilities_is_log_k() -> None:
    assert nll(torch.zeros(3, 10), torch.tensor([0, 4, 9])) == pytest.approx(math.log(10), rel=1e-12)


def test_nll_keeps_what_float32_would_lose() -> None:
    assert nll(torch.tensor([[20.0, 0.0]]), torch.tensor([0])) == pytest.approx(math.log1p(math.exp(-20)), rel=1e-6)


def test_nll_is_infinite_where_the_target_was_ruled_out() -> None:
    logits = torch.tensor([[0.0, -math.inf], [0.0, 1.0]])
    assert nll(logits, torch.tensor([1, 1])) == math.inf
    assert nll(logits, torch.tensor([0, 1])) == pytest.approx(math.log1p(math.exp(-1)) / 2)


def test_brier_of_two_classes_is_twice_scikit_learns() -> None:
    logits, target = predictions(num_classes=2)
    one_sided = brier_score_loss(target.numpy(), numpy_softmax(logits)[:, 1])
    assert brier(logits, target) == pytest.approx(2 * one_sided)


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


# calibration


@pytest.mark.parametrize("num_bins", [1, 10, 20])
def test_ece_agrees_with_a_loop_over_bins(num_bins: int) -> None:
    logits, target = predictions()
    p = numpy_softmax(logits)
    expected = numpy_binned_gap(p.max(axis=1), p.argmax(axis=1) == target.numpy(), num_bins)
    assert ece(logits, target, num_bins) == pytest.approx(expected)


def test_ece_of_a_small_case_is_computed_by_hand() -> None:
    logits = two_class([0.9, 0.9, 0.6])
    target = torch.tensor([0, 1, 0])
    # two images in one bin: |1/2 − 0.9| · 2/3; one in another: |1 − 0.6| · 1/3
    assert ece(logits, target, 10) == pytest.approx(100 * (0.4 * 2 / 3 + 0.4 / 3))


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


def test_a_calibrated_model_has_no_calibration_error() -> None:
    logits = two_class([0.75] * 4)
    target = torch.tensor([0, 0, 0, 1])
    for metric in (ece, adaptive_ece, classwise_ece):
        assert metric(logits, target) == pytest.approx(0, abs=1e-9)


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
    target = torch.tensor([0] * 20 + [1] * 20)  # taken row by row, the runs would be all right, then all wrong
    assert adaptive_ece(logits, target) == pytest.approx(40.0)


@pytest.mark.parametrize("num_classes", [2, 7, 64, 65, 130])
def test_classwise_ece_agrees_with_a_loop_over_classes(num_classes: int) -> None:
    logits, target = predictions(num_classes=num_classes)
    p = numpy_softmax(logits)
    expected = np.mean([numpy_binned_gap(p[:, c], target.numpy() == c, 20) for c in range(num_classes)])
    assert classwise_ece(logits, target) == pytest.approx(expected)


# ranking by confidence


def test_aurc_of_a_small_case_is_computed_by_hand() -> None:
    logits = two_class([0.7, 0.9, 0.8])
    target = torch.tensor([0, 0, 1])  # by confidence: right, wrong, right
    assert aurc(logits, target) == pytest.approx(100 * (0 + 1 / 2 + 1 / 3) / 3)


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


def test_aurc_prefers_a_model_that_is_sure_where_it_is_right() -> None:
    target = torch.tensor([0, 0, 0, 1])
    knowing, unknowing = two_class([0.9, 0.9, 0.9, 0.6]), two_class([0.6, 0.6, 0.6, 0.9])
    assert aurc(knowing, target) == pytest.approx(100 / 16)
    assert aurc(unknowing, target) > 25 > aurc(knowing, target)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "recall_at_1"])
def test_the_order_of_the_rows_does_not_matter_even_among_ties(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(3, (101, 4), generator=generator).float()
    target = torch.randint(4, (101,), generator=generator)
    expected = METRICS[name].compute(logits, target, None)
    for seed in range(3):
        order = torch.randperm(101, generator=generator.manual_seed(seed))
        assert METRICS[name].compute(logits[order], target[order], None) == pytest.approx(expected, rel=1e-12)


# recall@1


@pytest.mark.parametrize("chunk_size", [1, 64, 203, 1024])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_recall_agrees_with_scikit_learns_neighbours(chunk_size: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(7, (203,), generator=generator)
    features = torch.randn(7, 16, generator=generator)[target] + 2 * torch.randn(203, 16, generator=generator) + offset
    x = features.numpy().astype(np.float64)
    neighbours = NearestNeighbors(n_neighbors=2, algorithm="kd_tree").fit(x).kneighbors(x, return_distance=False)
    assert (neighbours[:, 0] == np.arange(203)).all()
    expected = 100 * np.mean(target.numpy()[neighbours[:, 1]] == target.numpy())
    assert 20 < expected < 90
    assert recall_at_1(features, target, chunk_size) == pytest.approx(expected)


def test_recall_survives_an_offset_that_float32_products_do_not() -> None:
    # Two pairs, one step of float32 apart within and ten between, where 64 squares of 1e4 add up to 6.4e9.
    features = torch.full((4, 64), 1e4)
    features[:, 0] += torch.tensor([0.0, 1.0, 11.0, 12.0]) / 1024
    assert recall_at_1(features, torch.tensor([0, 0, 1, 1])) == 100.0
    assert recall_at_1(features, torch.tensor([0, 1, 0, 1])) == 0.0


def test_features_are_not_normalised() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [9.0, 0.0], [9.0, 6.0]])
    target = torch.tensor([0, 0, 1, 1])
    assert recall_at_1(features, target) == 100.0
    assert recall_at_1(torch.nn.functional.normalize(features), target) == 0.0  # by angle each finds the other class


def test_a_duplicate_counts_as_another_image() -> None:
    features = torch.tensor([[1.0, 2.0], [5.0, 5.0], [1.0, 2.0], [5.0, 6.0]])
    assert recall_at_1(features, torch.tensor([0, 1, 0, 2])) == 50.0


def test_the_only_image_of_a_class_counts_as_missed() -> None:
    features = torch.tensor([[0.0], [0.1], [5.0]])
    assert recall_at_1(features, torch.tensor([0, 0, 1])) == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("features", [torch.full((300, 33), 0.1), torch.zeros(300, 33)])
def test_of_equally_near_images_the_first_counts(features: Tensor) -> None:
    target = torch.ones(300, dtype=torch.int64)
    target[0] = 0  # the first image is everybody's neighbour, and its own is the second
    assert recall_at_1(features, target, chunk_size=128) == 0.0
    target[1] = 0
    assert recall_at_1(features, target, chunk_size=128) == pytest.approx(100 * 2 / 300)


def test_ties_on_a_grid_go_to_the_first_as_in_exact_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(4, (150, 3), generator=generator)
    target = torch.randint(3, (150,), generator=generator)
    hits = 0
    for i, x in enumerate(features.tolist()):
        distances = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in features.tolist()]
        others = [(d, j) for j, d in enumerate(distances) if j != i]
        hits += int(target[min(others)[1]] == target[i])
    # an odd scale and offset: the products round, and the ties stay ties
    assert recall_at_1(features.double() * 0.37 + 11.3, target, 64) == pytest.approx(100 * hits / 150)


# the table


def test_every_metric_is_reported_in_order_with_its_definition() -> None:
    logits, target = predictions()
    features = torch.randn(203, 5, generator=torch.Generator().manual_seed(2))
    values = evaluate_predictions(logits, target, features)
    assert list(values) == list(METRICS) == list(DEFINITIONS) == NAMES
    assert values["top1_error"] == top_k_error(logits, target, 1)
    assert values["top5_error"] == top_k_error(logits, target, 5)
    assert values["recall_at_1"] == recall_at_1(features, target)
    for metric in (nll, brier, ece, adaptive_ece, classwise_ece, aurc):
        assert values[metric.__name__] == metric(logits, target)
    assert all(type(value) is float for value in values.values())


def test_recall_is_none_without_features() -> None:
    values = evaluate_predictions(*predictions(), None)
    assert [name for name, value in values.items() if value is None] == ["recall_at_1"]


def test_definitions_fit_a_line_and_name_bins_and_unit() -> None:
    assert all("\n" not in text and text.endswith(("percent", "nats", "0 to 2")) for text in DEFINITIONS.values())
    assert all("20 equal" in DEFINITIONS[name] for name in ("ece", "adaptive_ece", "classwise_ece"))


def test_one_class_is_always_right_and_sure() -> None:
    values = evaluate_predictions(torch.randn(5, 1), torch.zeros(5, dtype=torch.int64), torch.randn(5, 3))
    assert values == dict.fromkeys(NAMES, 0.0) | {"recall_at_1": 100.0}


def test_inputs_are_left_as_they_were() -> None:
    logits, target = predictions()
    logits = logits.double()  # the one dtype that conversion does not copy
    features = logits.clone()
    before = logits.clone(), target.clone()
    evaluate_predictions(logits, target, features)
    assert torch.equal(logits, before[0])
    assert torch.equal(features, before[0])
    assert torch.equal(target, before[1])


LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(0, 3), LABELS[:0], r"logits \(0, 3\)"),
        (torch.zeros(3, 0), LABELS, r"logits \(3, 0\)"),
        (torch.zeros(3), LABELS, r"logits \(3,\)"),
        (torch.zeros(2, 3), LABELS, r"logits \(2, 3\) and target \(3,\)"),
        (torch.zeros(3, 3), LABELS[:, None], r"target \(3, 1\)"),
        (torch.zeros(3, 3), LABELS.float(), r"torch\.float32.*torch\.int64"),
        (torch.zeros(3, 2), LABELS, r"target\[2\] is 2; allowed for 2 logits: 0\.\.1"),
        (torch.zeros(3, 3), LABELS - 1, r"target\[0\] is -1; allowed for 3 logits: 0\.\.2"),
        (torch.tensor([[0.0], [math.nan], [math.nan]]), LABELS * 0, r"logits\[1\] is not finite, the first of 2"),
        (torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, math.inf]]), LABELS * 0, r"logits\[2\]"),
        (torch.tensor([[-math.inf, -math.inf], [0.0, 0.0], [0.0, 0.0]]), LABELS * 0, r"logits\[0\]"),
    ],
)
@pytest.mark.parametrize("metric", [nll, brier, ece, adaptive_ece, classwise_ece, aurc])
def test_unusable_predictions_are_named(metric, logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metric(logits, target)
    with pytest.raises(ValueError, match=message):
        top_k_error(logits, target, 1)


@pytest.mark.parametrize(
    ("features", "target", "message"),
    [
        (torch.zeros(1, 3), LABELS[:1], "at least 2"),
        (torch.zeros(2, 3), LABELS, r"features \(2, 3\) and target \(3,\)"),
        (torch.zeros(3), LABELS, r"features \(3,\)"),
        (torch.tensor([[0.0], [1.0], [math.nan]]), LABELS, r"features\[2\] is not finite"),
    ],
)
def test_unusable_features_are_named(features: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_1(features, target)
