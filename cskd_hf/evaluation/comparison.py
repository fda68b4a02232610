"""Models on the same images: each one's metrics with intervals, and which differences the images support.

The first model is the reference. For each metric, the p-values of the others are corrected for their number (Holm).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.stats import binomtest
from torch import Tensor

from cskd_hf.evaluation.confidence import wilson_interval
from cskd_hf.evaluation.details import ClassResult, class_results
from cskd_hf.evaluation.metrics import CALIBRATION_ERRORS, DEFINITIONS, RECALLS, image_scores, metric_values
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.evaluation.resampling import RESAMPLES, Interval, interval, p_value, replicates, swap_p_value

_SHARES = ("top1_error", "top5_error", *(f"recall_at_{k}" for k in RECALLS))  # of the images
_MAY_BE_NEGATIVE = ("nll_calibration", "brier_calibration")
_LARGEST = {"nll": math.inf, "brier": 2.0}  # by the name's first word; the others are percentages


@dataclass(frozen=True)
class Measured:
    """The metrics of one model, before or after temperature scaling.

    Attributes:
        values: every metric of `DEFINITIONS`; None if it is undefined.
        replicated: those with an interval, on each resample; none if a resample has an infinite NLL, or no image of a
            group of classes.
        answers: what `CALIBRATION_ERRORS` are of.
    """

    values: dict[str, float | None]
    replicated: dict[str, Tensor]
    answers: tuple[Tensor, ...] = ()

    def interval(self, name: str) -> Interval | None:
        """The metric's 95 % interval: Wilson's for shares of images, else the bootstrap's.

        None without resamples, or if they leave it no width, as where the value is the end of its range.
        """
        value = self.values[name]
        if value is None or name not in self.replicated:
            return None
        if name in _SHARES:
            ends = wilson_interval(torch.tensor(value / 100), torch.tensor(len(self.answers[0])))
            return Interval(*(100 * end.item() for end in ends))
        found = interval(value, self.replicated[name])
        if name not in _MAY_BE_NEGATIVE:
            # A replicate reflected at the value may lie beyond the metric's range; all do where the value is its end.
            largest = _LARGEST.get(name.partition("_")[0], 100.0)
            found = Interval(*(min(max(end, 0.0), largest) for end in found))
        return found if found.high - found.low > 1e-9 else None


@dataclass(frozen=True)
class Compared:
    """One of several models on the same images.

    Attributes:
        source: as the user wrote it.
        temperature, calibration: as for `TrainedModel`.
        last: with the logits as trained.
        scaled: with the logits divided by the temperature; None without one.
        correct: (N,) bool: whether the top class is the target.
        skipped: unreadable images, which are not among the N.
        classes: by name.
    """

    source: str
    temperature: float | None
    calibration: str
    last: Measured
    scaled: Measured | None
    correct: Tensor
    skipped: int
    classes: dict[str, ClassResult]


class Difference(NamedTuple):
    """A model's metric minus the reference's.

    Attributes:
        model: its place among the models, from 1.
        calibrated: of the logits divided by each model's temperature.
        p: by McNemar's exact test for `top1_error`, by swapping the models' answers for `CALIBRATION_ERRORS`, else by
            the bootstrap, at least 2 / 2^N; corrected for the number of models.
        verdict: "better" or "worse" if the interval excludes 0, p is at most 0.05, and the difference shows in the four
            digits that are printed; else "".
    """

    metric: str
    model: int
    calibrated: bool
    value: float
    low: float
    high: float
    p: float
    verdict: str


def measure(
    source: str,
    predictions: Predictions,
    class_names: Sequence[str],
    temperature: float | None = None,
    calibration: str = "",
    train_images: Sequence[int] | None = None,
    *,
    count: int = RESAMPLES,
    seed: int = 0,
) -> Compared:
    """Metrics and intervals of one model; afterwards its logits are not needed.

    Args:
        source: what to call it.
        class_names: K, in the order of the logits.
        temperature, calibration: as for `TrainedModel`.
        train_images: K, of each class; None if not known.
        count: resamples; 0: no intervals.
        seed: of the resamples, the same for all models.
    """
    logits, target = predictions.logits, predictions.target
    divisors = (1.0,) if temperature is None else (1.0, temperature)
    measured = []
    for scores, divisor in zip(
        image_scores(logits, target, predictions.features, divisors, train_images), divisors, strict=True
    ):
        found = replicates(scores, logits, target, divisor, count, seed) if count else {}
        replicated = {name: values for name, values in found.items() if values is not None and values.isfinite().all()}
        answers = (scores.at.confidence, scores.at.log_odds, (scores.rank == 0).double())
        measured.append(Measured(metric_values(scores, logits, target, divisor), replicated, answers))
    scaled = measured[1] if len(measured) == 2 else None
    classes = dict(zip(class_names, class_results(logits, target), strict=False))
    correct, skipped = logits.argmax(dim=1) == target, len(predictions.skipped)
    return Compared(source, temperature, calibration, measured[0], scaled, correct, skipped, classes)


def differences(models: Sequence[Compared]) -> Iterator[Difference]:
    """Every metric of every model minus the first's, by metric; calibrated ones if both have a temperature.

    Metrics that do not depend on the temperature have one row, as trained. `classwise_ece` has none: resamples raise it
    by more than models differ, and a swap would need all probabilities.
    """
    for name in (name for name in DEFINITIONS if name != "classwise_ece"):
        yield from _differences(name, [model.last for model in models], models, calibrated=False)
        if any(model.scaled is not None and model.scaled.values[name] != model.last.values[name] for model in models):
            yield from _differences(name, [model.scaled for model in models], models, calibrated=True)


def _differences(
    name: str, measured: Sequence[Measured | None], models: Sequence[Compared], calibrated: bool
) -> Iterator[Difference]:
    reference, rows = measured[0], list[Difference]()
    if reference is None:
        return
    for number, own in enumerate(measured[1:], start=2):
        if own is None or name not in own.replicated or name not in reference.replicated:
            continue
        ours, theirs = own.values[name], reference.values[name]
        assert ours is not None
        assert theirs is not None
        value, replicated = ours - theirs, own.replicated[name] - reference.replicated[name]
        low, high = interval(value, replicated)
        if name == "top1_error":
            p = mcnemar(models[0].correct, models[number - 1].correct)
        elif name in CALIBRATION_ERRORS:
            p = swap_p_value(CALIBRATION_ERRORS[name], reference.answers, own.answers, len(replicated))
        else:
            # An exact test swaps the models' answers image by image, in 2^N ways; resamples of few images all agree.
            p = max(p_value(value, replicated), 2.0 ** (1 - len(models[0].correct)))
        verdict = ""
        if (low > 0 or high < 0) and abs(value) > 1e-4 * max(abs(ours), abs(theirs)):
            verdict = "better" if (low > 0) == name.startswith("recall") else "worse"
        rows.append(Difference(name, number, calibrated, value, low, high, p, verdict))
    for row, p in zip(rows, holm([row.p for row in rows]), strict=True):
        yield row._replace(p=p, verdict=row.verdict if p <= 0.05 else "")


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Exact two-sided p-value of two models' errors: of the images that one alone gets right, is it either by chance?

    Args:
        first, second: (N,) bool, whether each image is classified correctly.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika
    1947, with the binomial distribution.

    Example:
        >>> import torch
        >>> mcnemar(torch.tensor([True] * 6 + [False]), torch.tensor([False] * 6 + [False]))  # 2 · ½⁶
        0.03125
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected
