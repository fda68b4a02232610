"""Bootstrap intervals of every metric: the test images are drawn again, with replacement.

Resamples depend on the seed and the number of images alone. The replicates of two models on the same images are
therefore paired, and their difference is that of the models on each resample.

Sources: B. Efron, R. J. Tibshirani, "An introduction to the bootstrap", 1993, chapter 13; for swaps, E. W. Noreen,
"Computer-intensive methods for testing hypotheses", 1989.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cskd_hf.evaluation import weighted
from cskd_hf.evaluation.confidence import NUM_BINS
from cskd_hf.evaluation.metrics import DEFINITIONS, ImageScores, weighted_metrics
from cskd_hf.evaluation.rows import row_chunks

RESAMPLES = 1_000  # [ours]
MAX_WORK = 2e11  # images × classes × resamples of classwise_ece, which takes a minute [ours]


class Interval(NamedTuple):
    """Ends of a 95 % interval."""

    low: float
    high: float


def resamples(num_images: int, count: int, seed: int, size: int) -> Iterator[Tensor]:
    """How often each image is drawn in each resample: (at most `size`, N) float64, `count` rows in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, count, size):
        drawn = (generator.integers(num_images, size=num_images) for _ in range(min(size, count - start)))
        yield torch.from_numpy(np.stack([np.bincount(rows, minlength=num_images) for rows in drawn])).double()


def replicates(
    scores: ImageScores, logits: Tensor, target: Tensor, temperature: float = 1.0, count: int = RESAMPLES, seed: int = 0
) -> dict[str, Tensor | None]:
    """Every metric on every resample, (count,) each; None for one that is undefined or would take too long.

    Args:
        scores: of `image_scores` at this temperature.
        logits: (N, K).
        target: (N,) int64.
    """
    num_images, num_classes = logits.shape
    classwise = num_images * num_classes * count <= MAX_WORK
    size = max(1, 2**20 // max(num_images, NUM_BINS * num_classes if classwise else 0))
    parts = []
    for weight in resamples(num_images, count, seed, size):
        values = weighted_metrics(scores, weight)
        if classwise:
            chunks = row_chunks(logits, target, temperature)
            values["classwise_ece"] = 100 * weighted.classwise_error(chunks, num_classes, weight, NUM_BINS)
        parts.append(values)
    return {name: _joined([part.get(name) for part in parts]) for name in DEFINITIONS}


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def interval(value: float, replicated: Tensor) -> Interval:
    """The 95 % interval of a metric or of a difference: replicates reflected about the value ("basic").

    Resampling biases calibration errors and the like upwards once more; the reflection takes that bias off.
    """
    ends = torch.quantile(_reflected(value, replicated), torch.tensor([0.025, 0.975], dtype=torch.float64))
    return Interval(*ends.tolist())


def p_value(difference: float, replicated: Tensor) -> float:
    """Two-sided probability of 0 under the reflected replicates, at least 1 / (count + 1)."""
    reflected, count = _reflected(difference, replicated), len(replicated)
    beyond = min((reflected <= 0).sum().item(), (reflected >= 0).sum().item())
    return min(1.0, (2 * beyond + 1) / (count + 1))


def swap_p_value(
    metric: Callable[..., Tensor], first: Sequence[Tensor], second: Sequence[Tensor], count: int, seed: int = 0
) -> float:
    """Two-sided p-value of the difference of two models' metric: are their answers to each image exchangeable?

    In each of `count` repetitions the two answers to about half of the images are swapped. Unlike resamples of the
    images, that adds no bias to calibration errors.

    Args:
        metric: of what each model has of each image, and of weights (R, N): (R,).
        first, second: what each model has, (N,) each.
        seed: of the swaps.
    """
    both, num_images = [torch.cat(pair) for pair in zip(first, second, strict=True)], len(first[0])

    def difference(swapped: Tensor) -> Tensor:
        stay = 1 - swapped
        ours, theirs = (metric(*both, torch.cat(parts, dim=1)) for parts in ((stay, swapped), (swapped, stay)))
        return (theirs - ours).abs().round(decimals=11)

    observed = difference(torch.zeros(1, num_images, dtype=torch.float64))
    generator, size, beyond = np.random.default_rng(seed), max(1, 2**19 // num_images), 0
    for start in range(0, count, size):
        swapped = generator.integers(2, size=(min(size, count - start), num_images))
        beyond += int((difference(torch.from_numpy(swapped).double()) >= observed).sum())
    return (beyond + 1) / (count + 1)


def _reflected(value: float, replicated: Tensor) -> Tensor:
    # Rounded, as equal shares of images differ in the last bits, and verdicts depend on whether an end is 0.
    return (2 * value - replicated).round(decimals=9)
