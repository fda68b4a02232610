"""What a set of predictions is worth: accuracy, calibration, ranking by confidence, and the features behind them.

Pure functions of CPU tensors: logits (N, K), target (N,) int64, features (N, D). Inputs are float32, as saved; sums are
float64. Rates are percent, `nll` is in nats, `brier` lies in 0..2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 20  # the paper's, for its ECE; its reliability diagrams use 10


def top_k_error(logits: Tensor, target: Tensor, k: int) -> float:
    """Share of images whose class is not among the k largest logits, in percent; 0 where k reaches all K classes.

    Equal logits rank by class index, as in argmax: a model that says the same of every class is not right by default.

    Example:
        >>> import torch
        >>> from cskd_hf import top_k_error
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        >>> top_k_error(logits, torch.tensor([0, 2]), k=1), top_k_error(logits, torch.tensor([0, 2]), k=2)
        (50.0, 0.0)
    """
    check_predictions(logits, target)
    own = logits.gather(1, target[:, None])
    wins_ties = torch.arange(logits.shape[1]) < target[:, None]
    rank = ((logits > own) | ((logits == own) & wins_ties)).sum(dim=1)
    return 100.0 * (rank >= k).double().mean().item()


def nll(logits: Tensor, target: Tensor) -> float:
    """Negative log-likelihood of the target, mean over images, in nats; inf where a target's logit is -inf.

    Example:
        >>> import torch
        >>> from cskd_hf import nll
        >>> round(nll(torch.zeros(2, 4), torch.tensor([0, 3])), 4)  # uniform: ln 4
        1.3863
    """
    check_predictions(logits, target)
    return F.cross_entropy(logits.double(), target).item()


def brier(logits: Tensor, target: Tensor) -> float:
    """Squared error of the probabilities, summed over classes, mean over images: 0..2, not percent.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.

    Example:
        >>> import torch
        >>> from cskd_hf import brier
        >>> brier(torch.zeros(2, 2), torch.tensor([0, 1]))  # (1 − ½)² + ½²
        0.5
    """
    check_predictions(logits, target)
    error = _softmax(logits)
    error[torch.arange(len(target)), target] -= 1
    return error.square_().sum(dim=1).mean().item()


@dataclass(frozen=True)
class ReliabilityBins:
    """The points of a reliability diagram, (num_bins,) each, shares in 0..1; NaN where a bin holds no image."""

    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(logits: Tensor, target: Tensor, num_bins: int) -> ReliabilityBins:
    """Images sorted by confidence into equal-width bins (a, b]: how many, how often right, how sure on average."""
    confidence, correct = _confidence_and_correct(logits, target)
    index = _bin_index(confidence, num_bins)
    count = torch.bincount(index, minlength=num_bins)
    accuracy = torch.bincount(index, correct, minlength=num_bins) / count
    return ReliabilityBins(count, accuracy, torch.bincount(index, confidence, minlength=num_bins) / count)


def ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error, in percent: Σ |B|/N · |accuracy(B) − confidence(B)| over equal-width bins B = (a, b].

    Source: M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015, in the form of C. Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599.

    Example:
        >>> import torch
        >>> from cskd_hf import ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(ece(logits, torch.tensor([0, 1])), 2)  # 90 % confident, 50 % accurate
        40.0
    """
    bins = reliability_bins(logits, target, num_bins)
    gap = (bins.accuracy - bins.confidence).abs()
    return 100.0 * (bins.count * gap).nansum().item() / len(target)  # empty bins are NaN and weigh nothing


def adaptive_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """As `ece`, over bins of equal mass: images in order of confidence, in runs whose sizes differ by at most one.

    A run may end among equal confidences. Each of those images then counts with the accuracy they share, so the result
    does not depend on the order of the rows.

    Source: J. Mukhoti et al., "Calibrating deep neural networks using focal loss", NeurIPS 2020,
    https://arxiv.org/abs/2002.09437.

    Example:
        >>> import torch
        >>> from cskd_hf import adaptive_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(adaptive_ece(logits, torch.tensor([0, 1]), num_bins=1), 2)
        40.0
    """
    confidence, accuracy = _by_confidence(logits, target)
    gaps = (accuracy - confidence).tensor_split(num_bins)
    return 100.0 * sum(gap.sum().abs().item() for gap in gaps) / len(target)


def classwise_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """Mean over the K classes of the one-vs-all error Σ |B|/N · |share of class k in B − mean p_k in B|, in percent.

    Bins are those of `ece`, over p_k of every image. Most p_k are near 0, so values fall with K: compare at equal K.

    Source: M. Kull et al., "Beyond temperature scaling", NeurIPS 2019, https://arxiv.org/abs/1910.12656.

    Example:
        >>> import torch
        >>> from cskd_hf import classwise_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(classwise_ece(logits, torch.tensor([0, 1])), 2)  # 40 points too high for class 0, too low for class 1
        40.0
    """
    check_predictions(logits, target)
    probability = _softmax(logits)
    num_images, num_classes = probability.shape
    total = 0.0
    for classes in torch.arange(num_classes).split(64):  # 64 classes of ImageNet's 50,000 images: 26 MB a temporary
        p = probability[:, classes]
        gap = p - (target[:, None] == classes).double()
        index = _bin_index(p, num_bins) + num_bins * torch.arange(len(classes))  # a row of bins for each class
        total += torch.bincount(index.flatten(), gap.flatten()).abs().sum().item()
    return 100.0 * total / (num_images * num_classes)


def aurc(logits: Tensor, target: Tensor) -> float:
    """Area under the risk-coverage curve, in percent: mean over k = 1..N of the error rate of the k most confident.

    Equal confidences have no order of their own: each such image counts with the error rate they share, which is the
    expectation over all ways to break the tie. With one confidence for all images this is the error rate.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019, https://arxiv.org/abs/1805.08206.

    Example:
        >>> import torch
        >>> from cskd_hf import aurc
        >>> logits = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> aurc(logits, torch.tensor([0, 1]))  # risks 0 and ½: the error is the less confident prediction
        25.0
    """
    _, accuracy = _by_confidence(logits, target)
    risk = (1 - accuracy).cumsum(dim=0) / torch.arange(1, len(target) + 1)
    return 100.0 * risk.mean().item()


def recall_at_1(features: Tensor, target: Tensor, chunk_size: int = 1024) -> float:
    """Share of images whose nearest other image has the same class, in percent: L2, features not normalised.

    The only image of a class cannot be recalled and counts as missed. Of equally near images, to within rounding, the
    first counts. Memory: chunk_size × N float64 at a time.

    Source: the CS-KD paper, after H. O. Song et al., CVPR 2016, https://arxiv.org/abs/1511.06452.

    Example:
        >>> import torch
        >>> from cskd_hf import recall_at_1
        >>> features = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
        >>> recall_at_1(features, torch.tensor([0, 0, 1, 2]))
        50.0
    """
    if features.ndim != 2 or target.shape != features.shape[:1] or len(target) < 2:
        raise ValueError(
            f"features {tuple(features.shape)} and target {tuple(target.shape)}: "
            "recall_at_1 needs shapes (N, D) and (N,) with N at least 2"
        )
    _check_rows("features", features.isfinite().all(dim=1))
    features = features.double()
    features = features - features.mean(dim=0)  # |b|² − 2a·b cancels badly where a large mean is common to all
    square = features.square().sum(dim=1)
    rounding = (features.shape[1] + 8) * torch.finfo(torch.float64).eps  # of a dot product, relative to |a|² + |b|²
    recalled = 0
    for rows in torch.arange(len(target)).split(chunk_size):
        distance = torch.addmm(square, features[rows], features.T, alpha=-2)  # less |a|², the same along a row
        distance[torch.arange(len(rows)), rows] = torch.inf  # by index: a duplicate is another image, at distance 0
        smallest, nearest = distance.min(dim=1, keepdim=True)
        tied = distance <= smallest + rounding * (square[rows, None] + square[nearest])
        first = tied.to(torch.uint8).argmax(dim=1)
        recalled += int((target[first] == target[rows]).sum())
    return 100.0 * recalled / len(target)


class Metric(NamedTuple):
    """A function of (logits, target, features), and the one line that is printed beside its value."""

    compute: Callable[[Tensor, Tensor, Tensor | None], float | None]
    definition: str


METRICS: dict[str, Metric] = {
    "top1_error": Metric(
        lambda logits, target, _: top_k_error(logits, target, 1), "target is not the top class; percent"
    ),
    "top5_error": Metric(
        lambda logits, target, _: top_k_error(logits, target, 5), "target is not in the top 5; percent"
    ),
    "nll": Metric(lambda logits, target, _: nll(logits, target), "negative log-likelihood of the target; nats"),
    "brier": Metric(
        lambda logits, target, _: brier(logits, target),
        "squared error of the probabilities, summed over classes, mean over images; 0 to 2",
    ),
    "ece": Metric(
        lambda logits, target, _: ece(logits, target),
        f"expected calibration error of the top class, {NUM_BINS} equal-width bins (a, b], L1; percent",
    ),
    "adaptive_ece": Metric(
        lambda logits, target, _: adaptive_ece(logits, target),
        f"expected calibration error of the top class, {NUM_BINS} equal-mass bins, L1; percent",
    ),
    "classwise_ece": Metric(
        lambda logits, target, _: classwise_ece(logits, target),
        f"calibration error of p_k, {NUM_BINS} equal-width bins (a, b], L1, mean over the K classes; percent",
    ),
    "aurc": Metric(
        lambda logits, target, _: aurc(logits, target),
        "area under the risk-coverage curve, by the top class's probability, ties in expectation; percent",
    ),
    "recall_at_1": Metric(
        lambda _, target, features: None if features is None or len(target) < 2 else recall_at_1(features, target),
        "nearest other image has the same class, L2 on pooled features, not normalised; percent",
    ),
}

DEFINITIONS: dict[str, str] = {name: metric.definition for name, metric in METRICS.items()}


def evaluate_predictions(logits: Tensor, target: Tensor, features: Tensor | None) -> dict[str, float | None]:
    """Every metric of `METRICS`, in its order; `recall_at_1` is None without features or a second image.

    Raises:
        ValueError: the input is empty, shapes disagree, a target is not a class, or a row has no softmax.

    Example:
        >>> import torch
        >>> from cskd_hf import evaluate_predictions
        >>> metrics = evaluate_predictions(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]), features=None)
        >>> metrics["top1_error"], metrics["ece"]
        (75.0, 15.0)
    """
    return {name: metric.compute(logits, target, features) for name, metric in METRICS.items()}


def check_predictions(logits: Tensor, target: Tensor) -> None:
    """Raises ValueError unless logits (N, K) and target (N,) are what the functions here are defined on."""
    if logits.ndim != 2 or 0 in logits.shape or target.shape != logits.shape[:1] or target.dtype != torch.int64:
        raise ValueError(
            f"logits {tuple(logits.shape)} and target {tuple(target.shape)} of {target.dtype}: "
            "needs shapes (N, K) and (N,) with N and K at least 1, and a target of torch.int64"
        )
    num_classes = logits.shape[1]
    outside = (target < 0) | (target >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise ValueError(f"target[{row}] is {int(target[row])}; allowed for {num_classes} logits: 0..{num_classes - 1}")
    # amax passes NaN on: one finite maximum rules out NaN, +inf and a row of -inf. A single -inf is a probability of 0.
    _check_rows("logits", logits.amax(dim=1).isfinite())


def _check_rows(name: str, valid: Tensor) -> None:
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(f"{name}[{row}] is not finite, the first of {int((~valid).sum())} such rows of {len(valid)}")


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1, dtype=torch.float64)


def _bin_index(probability: Tensor, num_bins: int) -> Tensor:
    # Correctly rounded j/num_bins, which linspace is not: a confidence of exactly 1/5 is in the bin that ends there.
    inner_edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(probability, inner_edges)  # (a, b]; outer edges are open, so 0 and 1 have their bins


def _confidence_and_correct(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The probability of the predicted class and 1 where it is the target, (N,) each."""
    check_predictions(logits, target)
    return _softmax(logits).amax(dim=1), (logits.argmax(dim=1) == target).double()


def _by_confidence(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and accuracy, (N,) each, most confident first; equal confidences share their mean accuracy."""
    confidence, correct = _confidence_and_correct(logits, target)
    level, index, count = confidence.unique(return_inverse=True, return_counts=True)
    accuracy = torch.bincount(index, correct) / count
    return level.repeat_interleave(count).flip(0), accuracy.repeat_interleave(count).flip(0)
