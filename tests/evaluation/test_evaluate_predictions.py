"""All metrics together: names, order and definitions, and inputs that all of them reject."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_logits import predictions
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cskd_hf.evaluation.calibration import calibrate
from cskd_hf.evaluation.confidence import (
    adaptive_ece,
    augrc,
    aurc,
    aurc_logit_norm,
    classwise_ece,
    debiased_ece,
    ece,
    smooth_ece,
)
from cskd_hf.evaluation.metrics import (
    DEFINITIONS,
    brier,
    evaluate_both,
    evaluate_predictions,
    image_scores,
    nll,
    recall_at_k,
    top_k_error,
)
from cskd_hf.evaluation.resampling import replicates

METRICS = [nll, brier, ece, debiased_ece, smooth_ece, adaptive_ece, classwise_ece, aurc, aurc_logit_norm, augrc]
RECALL = [f"recall_at_{k}" for k in (1, 2, 4, 8)]
GROUPS = ["head_error", "medium_error", "tail_error"]


def test_every_metric_is_reported_in_order_with_its_definition() -> None:
    logits, target = predictions()
    features = torch.randn(203, 5, generator=torch.Generator().manual_seed(2))
    train_images = ([500, 50, 5] * logits.shape[1])[: logits.shape[1]]
    values = evaluate_predictions(logits, target, features, train_images=train_images)
    assert list(values) == list(DEFINITIONS)
    assert values["top1_error"] == top_k_error(logits, target, 1)
    assert values["top5_error"] == top_k_error(logits, target, 5)
    for k in (1, 2, 4, 8):
        assert values[f"recall_at_{k}"] == recall_at_k(features, target, k)
    for metric in METRICS:
        assert values[metric.__name__] == metric(logits, target)
    assert all(type(value) is float for value in values.values())


def test_recall_is_none_without_features_and_groups_of_classes_without_their_training_images() -> None:
    values = evaluate_predictions(*predictions(), None)
    assert [name for name, value in values.items() if value is None] == RECALL + GROUPS


@pytest.mark.parametrize(
    "train_images", [(101, 100, 20, 19, 1, 0, 1000), (19, 20, 20, 20, 20, 100, 3), (101,) * 7, (100,) * 7, (0,) * 7]
)
def test_macro_error_counts_classes_alike_and_groups_are_those_of_liu_et_al(train_images: tuple[int, ...]) -> None:
    random = np.random.RandomState(0)
    target = random.choice(6, size=60, p=[0.5, 0.3, 0.1, 0.05, 0.05, 0.0])  # two classes have no test images
    logits = random.randn(60, 7)
    missed = logits.argmax(axis=1) != target
    error = {label: 100 * missed[target == label].mean() for label in range(7) if (target == label).any()}
    bins = np.digitize(train_images, [20, 101])  # 0: tail, 1: medium, 2: head
    values = evaluate_predictions(torch.tensor(logits), torch.tensor(target), None, train_images=train_images)
    assert len(error) == 5
    assert values["macro_error"] == pytest.approx(np.mean(list(error.values())))
    for group, name in enumerate(("tail_error", "medium_error", "head_error")):
        own = [value for label, value in error.items() if bins[label] == group]
        assert values[name] == (pytest.approx(np.mean(own)) if own and len(set(bins)) > 1 else None)


def test_definitions_fit_a_line_and_name_bins_and_unit() -> None:
    assert all(
        "\n" not in text and text.endswith(("percent", "nats", "0 to 2", "-2 to 2")) for text in DEFINITIONS.values()
    )
    assert all("20 equal" in text for name, text in DEFINITIONS.items() if "ece" in name and name != "smooth_ece")


def test_a_single_class_is_always_right_and_certain() -> None:
    values = evaluate_predictions(torch.randn(5, 1), torch.zeros(5, dtype=torch.int64), torch.randn(5, 3))
    assert values == dict.fromkeys(DEFINITIONS, 0.0) | dict.fromkeys(RECALL, 100.0) | dict.fromkeys(GROUPS)


def _measured(logits: Tensor, target: Tensor, temperature: float = 1.0) -> dict[str, float]:
    train_images = ([500, 50, 5] * logits.shape[1])[: logits.shape[1]]
    values = evaluate_predictions(logits, target, None, temperature, train_images)
    return {name: value for name, value in values.items() if value is not None}


def test_the_split_of_a_score_is_none_if_a_logit_is_minus_infinity() -> None:
    values = evaluate_predictions(torch.tensor([[0.0, 1.0, -math.inf]]), torch.tensor([1]), None)
    missing = [f"{score}_{part}" for score in ("nll", "brier") for part in ("refinement", "calibration")]
    assert [name for name, value in values.items() if value is None] == missing + RECALL + GROUPS


def test_inputs_are_not_modified() -> None:
    logits, target = predictions()
    logits = logits.double()  # converting to float64 would not copy this dtype
    features = logits.clone()
    before = logits.clone(), target.clone()
    evaluate_predictions(logits, target, features)
    assert torch.equal(logits, before[0])
    assert torch.equal(features, before[0])
    assert torch.equal(target, before[1])


def test_the_order_of_the_rows_does_not_matter_even_among_ties() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randint(3, (101, 4), generator=generator).float()
    target = torch.randint(4, (101,), generator=generator)
    expected = _measured(logits, target)
    for seed in range(3):
        order = torch.randperm(101, generator=generator.manual_seed(seed))
        values = _measured(logits[order], target[order])
        assert values == pytest.approx(expected, rel=1e-9, abs=1e-12)


# invalid inputs


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
@pytest.mark.parametrize("metric", METRICS)
def test_invalid_predictions_are_rejected(metric, logits: Tensor, target: Tensor, message: str) -> None:
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
def test_invalid_features_are_rejected(features: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recall_at_k(features, target, 1)


def test_training_images_of_another_number_of_classes_are_rejected() -> None:
    with pytest.raises(ValueError, match="train_images of 2 classes, but 3 logits"):
        evaluate_predictions(torch.zeros(3, 3), LABELS, None, train_images=[500, 1])


def test_chunks_of_rows_and_the_temperature_change_no_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = predictions()
    whole = _measured(logits.double() / 1.7, target)
    monkeypatch.setattr("cskd_hf.evaluation.rows.CHUNK_SIZE", 4 * 7)
    chunked = _measured(logits, target, 1.7)
    assert chunked == pytest.approx(whole, rel=1e-9, abs=1e-12)
    assert evaluate_both(logits, target, None, 1.7) == (
        evaluate_predictions(logits, target, None),
        chunked | dict.fromkeys(RECALL + GROUPS),
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_temperature_is_rejected(temperature: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        evaluate_predictions(*predictions(), None, temperature)


class LargestTensor(TorchDispatchMode):
    """Records the elements of the largest tensor that torch makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.elements = max(self.elements, leaf.numel())
        return result


def test_neither_metrics_nor_the_temperature_copy_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, target = predictions(num_images=250, num_classes=50)
    monkeypatch.setattr("cskd_hf.evaluation.rows.CHUNK_SIZE", 1_000)
    with LargestTensor() as largest:
        evaluate_predictions(logits, target, logits[:, :3], temperature=2.0)
        calibrate(logits, target)
        replicates(image_scores(logits, target, None)[0], logits, target, count=1)
    assert largest.elements <= 2_000 < logits.numel() / 6  # a chunk of the neighbours' distances
