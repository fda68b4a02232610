"""Split-conformal prediction sets: the classes that an image may have, with a chosen coverage.

If hold-out and new images are exchangeable, the set holds the target of a new image with at least the chosen
probability, on average over hold-out sets, however wrong the probabilities are. Two scores of a class:

- "lac": -log p, which gives the same sets as 1 - p: the smallest on average, but none for an image without a likely
  class. M. Sadinle, J. Lei, L. Wasserman, "Least ambiguous set-valued classifiers with bounded error levels", JASA
  2019, https://arxiv.org/abs/1609.00451.
- "aps": the sum s of the likelier classes' probabilities plus a random share of its own, as -log(1 - s): larger sets,
  whose coverage differs less between easy and hard images. Y. Romano, M. Sesia, E. Candès, "Classification with valid
  and adaptive coverage", NeurIPS 2020, https://arxiv.org/abs/2006.02544.

RAPS (Angelopoulos et al., ICLR 2021) adds two settings to aps, to tune on further images, and is left out.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, Literal, get_args

import torch
from scipy.stats import betabinom
from torch import Tensor

from cskd_hf.evaluation.confidence import wilson_interval
from cskd_hf.evaluation.rows import check_rows, row_chunks

Score = Literal["lac", "aps"]
SCORES: tuple[Score, ...] = get_args(Score)


def fewest_images(coverage: float) -> int:
    """How many hold-out images a coverage needs."""
    share = Fraction(str(coverage))
    return math.ceil(share / (1 - share))


def _rank(images: int, coverage: float) -> int:
    """⌈(images + 1) · coverage⌉; as a fraction, since 100 · 0.55 in floats is above 55."""
    return math.ceil((images + 1) * Fraction(str(coverage)))


def conformal_quantile(scores: Tensor, coverage: float) -> float:
    """The ⌈(n + 1) · coverage⌉-th smallest score of n hold-out images: sets hold the classes up to it.

    Args:
        scores: (n,), of the targets.
        coverage: wanted, between 0 and 1.

    Raises:
        ValueError: the coverage is not between 0 and 1, n is too small for it, or a score is NaN.

    Example:
        >>> import torch
        >>> from cskd_hf import conformal_quantile
        >>> conformal_quantile(torch.arange(1.0, 20.0), coverage=0.9)  # ⌈20 · 0.9⌉ = 18
        18.0
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage is {coverage}; needs a number between 0 and 1")
    check_rows("scores", ~scores.isnan())
    if len(scores) < fewest_images(coverage):
        raise ValueError(f"{len(scores)} hold-out images; a coverage of {coverage} needs {fewest_images(coverage)}")
    return scores.kthvalue(_rank(len(scores), coverage)).values.item()


def class_scores(rows: Tensor, score: Score = "lac", share: Tensor | None = None) -> Tensor:
    """The score of each class, (n, K) float64; equal up to rounding is equal.

    Args:
        rows: logits (n, K) float64; a logit of -inf is probability 0.
        score: "lac" or "aps".
        share: (n,) in 0..1, for "aps": of the own probability.
    """
    log_p = rows.log_softmax(dim=1)
    if score == "lac":
        return log_p.neg_().round_(decimals=10)
    assert share is not None
    log_p, order = log_p.sort(dim=1, descending=True, stable=True)
    less_likely = torch.nn.functional.pad(log_p[:, 1:], (0, 1), value=-torch.inf).flip(1).logcumsumexp(dim=1).flip(1)
    in_order = torch.logaddexp(less_likely, log_p + (1 - share).log()[:, None]).neg_().round_(decimals=10)
    return torch.empty_like(log_p).scatter_(1, order, in_order)


def target_scores(
    logits: Tensor, target: Tensor, score: Score = "lac", temperature: float = 1.0, seed: int = 0
) -> Tensor:
    """The score of each image's target, (N,) float64; arguments as for `prediction_sets`."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for rows, labels in row_chunks(logits, target, temperature):
        share = torch.rand(len(rows), dtype=torch.float64, generator=generator)
        found.append(class_scores(rows, score, share).gather(1, labels[:, None])[:, 0])
    return torch.cat(found)


def prediction_sets(
    logits: Tensor,
    holdout_logits: Tensor,
    holdout_target: Tensor,
    coverage: float,
    score: Score = "lac",
    temperature: float = 1.0,
    seed: int = 0,
) -> Tensor:
    """Which classes are in each image's prediction set: (N, K) bool; a set may be empty.

    Args:
        logits: (N, K), of new images.
        holdout_logits: (n, K), of images the model was not trained on.
        holdout_target: (n,) int64.
        coverage: wanted, between 0 and 1.
        score: "lac" or "aps".
        temperature: divides all logits.
        seed: of the random shares of "aps"; the new images take the next one.

    Raises:
        ValueError: as for `check_predictions` and `conformal_quantile`; no such score, or new images of other classes.

    Example:
        >>> import torch
        >>> from cskd_hf import prediction_sets
        >>> holdout_logits = torch.tensor([[2.0, 0.0, -2.0]] * 9)
        >>> holdout_target = torch.tensor([0] * 7 + [1] * 2)
        >>> logits = torch.tensor([[2.0, 0.0, -2.0], [2.0, -2.0, -2.0]])
        >>> prediction_sets(logits, holdout_logits, holdout_target, coverage=0.8)  # the 8th of 9: log p of class 1
        tensor([[ True,  True, False],
                [ True, False, False]])
    """
    if score not in SCORES:
        raise ValueError(f"score is {score!r}; allowed: {', '.join(SCORES)}")
    if logits.shape[1:] != holdout_logits.shape[1:]:
        raise ValueError(f"logits {tuple(logits.shape)} and of hold-out images {tuple(holdout_logits.shape)}: other K")
    threshold = conformal_quantile(target_scores(holdout_logits, holdout_target, score, temperature, seed), coverage)
    generator = torch.Generator().manual_seed(seed + 1)
    sets = []
    for rows, _ in row_chunks(logits, torch.zeros(len(logits), dtype=torch.int64), temperature):
        share = torch.rand(len(rows), dtype=torch.float64, generator=generator)
        sets.append(class_scores(rows, score, share) <= threshold)
    return torch.cat(sets)


def expected_coverage(images: int, coverage: float, test_images: int) -> tuple[float, float]:
    """Where the share of test images in their sets lies for 95 % of hold-out and test sets of these sizes, in 0..1.

    A share below is evidence that the two differ. Without ties the number of images follows a beta-binomial
    distribution: V. Vovk, "Conditional validity of inductive conformal predictors", ACML 2012,
    https://arxiv.org/abs/1209.2673.
    """
    rank = _rank(images, coverage)
    low, high = betabinom(test_images, rank, images + 1 - rank).interval(0.95)
    return float(low) / test_images, float(high) / test_images


def measure_sets(sets: Tensor, target: Tensor, coverage: float) -> dict[str, Any]:
    """Coverage, sizes and coverage per class; rates in percent.

    `class_gap` is the mean over classes of |coverage of the class − wanted|, in percentage points: T. Ding et al.,
    "Class-conditional conformal prediction with many classes", NeurIPS 2023, https://arxiv.org/abs/2306.09335. Chance
    raises it where classes have few images.

    Args:
        sets: (N, K) bool.
        target: (N,) int64.
        coverage: wanted, between 0 and 1.

    Example:
        >>> sets = torch.tensor([[True, False], [True, True], [False, False], [True, False]])
        >>> found = measure_sets(sets, torch.tensor([0, 0, 1, 1]), coverage=0.5)
        >>> {name: found[name] for name in ("found", "mean_size", "empty", "singleton", "class_gap")}
        {'found': 50.0, 'mean_size': 1.0, 'empty': 25.0, 'singleton': 50.0, 'class_gap': 50.0}
    """
    covered, size = sets.gather(1, target[:, None])[:, 0].double(), sets.sum(dim=1).double()
    low, high = wilson_interval(covered.mean(), torch.tensor(len(target)))
    images = torch.bincount(target, minlength=sets.shape[1])
    of_class = torch.bincount(target, covered, minlength=sets.shape[1]) / images  # NaN without images
    worst = int(of_class.nan_to_num(2.0).argmin())
    return {
        "found": 100 * covered.mean().item(),
        "interval": [100 * low.item(), 100 * high.item()],
        "mean_size": size.mean().item(),
        "median_size": size.quantile(0.5).item(),
        "empty": 100 * (size == 0).double().mean().item(),
        "singleton": 100 * (size == 1).double().mean().item(),
        "class_gap": 100 * (of_class - coverage).abs().nanmean().item(),
        "worst_class": worst,
        "worst_class_coverage": 100 * of_class[worst].item(),
        "worst_class_images": int(images[worst]),
    }
