"""Temperature scaling: divide all logits by one number, fitted on the hold-out set, if that set determines it.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from torch import Tensor

from cskd_hf.evaluation.rows import check_predictions, finite_rows, row_chunks
from cskd_hf.evaluation.scores import proper_scores
from cskd_hf.runs.summary import Calibration

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-6, 1e6  # [ours] whatever the scale of the logits
MIN_IMAGES = 200  # [ours] AutoGluon's estimate of where scaling several classes begins to help, autogluon/tabarena#70
MAX_RATIO = 3.0  # [ours] between the ends of the interval
DEVIANCE = 3.841  # 95 % quantile of χ² with one degree of freedom


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature in [1e-6, 1e6] that minimises the mean NLL of softmax(logits / temperature).

    The NLL is convex in β = 1 / temperature, so its slope changes sign at most once; the root is found to a relative
    1e-9. A minimum outside the range returns its bound: 1e-6 if all images are classified correctly, 1e6 if the logits
    are worse than a constant. If all logits of each row are equal, the temperature is 1. `calibrate` says whether the
    images suffice.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.

    Raises:
        ValueError: as for `check_predictions`, or a logit is not finite.

    Example:
        >>> import torch
        >>> from cskd_hf import fit_temperature
        >>> logits, target = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # 98 % confident, 75 % accurate
        >>> round(fit_temperature(logits, target), 2)  # 4 / ln 3
        3.64
    """
    _check(logits, target)
    if torch.equal(logits.amin(dim=1), logits.amax(dim=1)):
        return 1.0

    def slope(log_beta: float) -> float:
        return _nll_and_slope(logits, target, math.exp(log_beta))[1]

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    return math.exp(-brentq(slope, low, high, xtol=1e-10))


def temperature_interval(
    logits: Tensor, target: Tensor, temperature: float, images: int
) -> tuple[float | None, float | None]:
    """The 95 % likelihood-ratio interval around the best temperature; None for an end outside [1e-6, 1e6].

    Args:
        logits: (N, K).
        target: (N,) int64.
        temperature: from `fit_temperature`.
        images: how many of the N count as independent.
    """
    limit = _nll_and_slope(logits, target, 1 / temperature)[0] + DEVIANCE / (2 * images)

    def excess(log_beta: float) -> float:
        return _nll_and_slope(logits, target, math.exp(log_beta))[0] - limit

    def end(bound: float) -> float | None:
        inside, outside = -math.log(temperature), -math.log(bound)
        if temperature == bound or excess(outside) <= 0:
            return None
        if excess(inside) >= 0:  # by rounding: the NLL of logits of, say, 1e20
            return temperature
        return math.exp(-brentq(excess, inside, outside, xtol=1e-10))

    return end(MIN_TEMPERATURE), end(MAX_TEMPERATURE)


def calibrate(logits: Tensor, target: Tensor) -> Calibration:
    """Fit the temperature, and decide whether the hold-out set supports it.

    The 95 % interval holds the temperatures whose likelihood is within χ²₁'s quantile of the best (likelihood ratio);
    images with equal predictions count once. The temperature is rejected for fewer than 200 different images, if they
    show less than half of the classes that so many could, if the interval has no end, or if its ends differ by more
    than a factor of 3.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.

    Raises:
        ValueError: as for `fit_temperature`.

    Example:
        >>> import torch
        >>> from cskd_hf import calibrate
        >>> logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]] * 9)
        >>> calibrate(logits, torch.tensor([0, 1] * 9)).verdict
        'not calibrated: 2 different hold-out images, fewer than the 200 that a temperature needs; T = 1'
    """
    temperature = fit_temperature(logits, target)
    images, different = len(target), count_different(logits, target)
    low, high = temperature_interval(logits, target, temperature, different)
    reason = _objection(logits, target, different, low, high)
    if reason is None:
        verdict = (
            f"calibrated: logits divided by the temperature {temperature:.4g} (95 % interval {low:.4g} to {high:.4g}), "
            f"fitted on {images:,} hold-out images"
        )
    else:
        verdict = f"not calibrated: {reason}; T = 1"
    return Calibration(
        verdict=verdict,
        temperature=temperature if reason is None else None,
        fitted=temperature,
        low=low,
        high=high,
        images=images,
        different_images=different,
        nll=proper_scores(logits, target).nll.mean().item(),
        nll_scaled=proper_scores(logits, target, temperature).nll.mean().item(),
    )


def _objection(logits: Tensor, target: Tensor, different: int, low: float | None, high: float | None) -> str | None:
    """Why the hold-out set does not support a temperature; None if it does."""
    images, num_classes, shown = len(target), logits.shape[1], len(target.unique())
    if different < MIN_IMAGES:
        kind = "hold-out images" if different == images else "different hold-out images"
        return f"{different} {kind}, fewer than the {MIN_IMAGES} that a temperature needs"
    if shown < max(min(num_classes, 2), min(num_classes, images) / 2):
        return f"the hold-out images show {shown} of {num_classes} classes"
    if low is None and (logits.argmax(dim=1) == target).all():
        return f"all {images:,} hold-out images are classified correctly, which bounds the temperature only from above"
    if low is None:
        return "the hold-out images bound the temperature only from above"
    if high is None:
        return "the network may be no better than chance: the hold-out images bound the temperature only from below"
    if high > MAX_RATIO * low:
        return f"{images:,} hold-out images leave the temperature between {low:.3g} and {high:.3g}"
    return None


def holdout_note(num_images: int) -> list[str]:
    """A warning, before the training, that no temperature will come of it."""
    if num_images >= MIN_IMAGES:
        return []
    return [
        f"data.holdout: {num_images} hold-out images, fewer than the {MIN_IMAGES} that a temperature needs: the run "
        "will not be calibrated; raise data.holdout"
    ]


def count_different(logits: Tensor, target: Tensor) -> int:
    """Images whose predictions or targets differ: copies of an image are no further evidence."""
    return len(group_copies(logits, target).unique())


def group_copies(logits: Tensor, target: Tensor) -> Tensor:
    """The number of each image's prediction among the different ones, (N,) int64.

    Compared are the target and three statistics of the logits, to 1e-4 of their spread: the same image in another batch
    may differ in the last bits.
    """
    keys = [
        torch.stack([labels.double(), rows.gather(1, labels[:, None])[:, 0] - mean, rows.amax(dim=1) - mean, spread], 1)
        for rows, labels in row_chunks(logits, target)
        for spread, mean in [torch.std_mean(rows, dim=1, correction=0)]
    ]
    rows = torch.cat(keys)
    rows[:, 1:] /= rows[:, 3].mean().clamp_min(1e-30)
    return (1e4 * rows).round().unique(dim=0, return_inverse=True)[1]


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, (N, K) float64: in float32 two logits could become equal and argmax change.

    Example:
        >>> import torch
        >>> from cskd_hf import apply_temperature
        >>> apply_temperature(torch.tensor([[4.0, 0.0]]), temperature=2.0)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; needs a finite number above 0")
    return logits.to(torch.float64) / temperature


def _nll_and_slope(logits: Tensor, target: Tensor, beta: float) -> tuple[float, float]:
    """Mean NLL at an inverse temperature, and its derivative."""
    value = slope = 0.0
    for rows, labels in row_chunks(logits, target):
        margin = rows - rows.gather(1, labels[:, None])  # NLL = log Σ exp(β · margin)
        scaled = beta * margin
        largest = scaled.amax(dim=1)
        weight = scaled.sub_(largest[:, None]).exp_()
        total = weight.sum(dim=1)
        value += (largest + total.log()).sum().item()
        slope += (weight.mul_(margin).sum(dim=1) / total).sum().item()
    return value / len(target), slope / len(target)


def _check(logits: Tensor, target: Tensor) -> None:
    check_predictions(logits, target)
    if not finite_rows(logits).all():
        row = int((~finite_rows(logits)).nonzero()[0])
        raise ValueError(f"logits[{row}] is not finite; fitting a temperature needs finite logits")
