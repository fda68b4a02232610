"""Metrics of a set of predictions: accuracy, calibration, ranking by confidence, and retrieval by features.

Pure functions of CPU tensors: logits (N, K), target (N,) int64, features (N, D). Inputs are float32, as saved; sums are
float64. Rates are in percent, `nll` is in nats, `brier` lies in 0..2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_BINS = 20  # the paper's ECE; its reliability diagrams have 10

DEFINITIONS: dict[str, str] = {
    "top1_error": "target is not the top class; percent",
    "top5_error": "target is not in the top 5; percent",
    "nll": "negative log-likelihood of the target; nats",
    "brier": "squared error of the probabilities, summed over classes, mean over images; 0 to 2",
    "ece": f"expected calibration error of the top class, {NUM_BINS} equal-width bins (a, b], L1; percent",
    "adaptive_ece": f"expected calibration error of the top class, {NUM_BINS} equal-mass bins, L1; percent",
    "classwise_ece": f"calibration error of p_k, {NUM_BINS} equal-width bins (a, b], L1, mean over K classes; percent",
    "aurc": "area under the risk-coverage curve, by the top class's probability, ties in expectation; percent",
    "recall_at_1": "nearest other image has the same class, L2 on pooled features, not normalised; percent",
}


def evaluate_predictions(logits: Tensor, target: Tensor, features: Tensor | None) -> dict[str, float | None]:
    """Every metric of `DEFINITIONS`, in its order; `recall_at_1` is None without features or a second image.

    Raises:
        ValueError: the input is empty, shapes disagree, a target is not a class, or a row has no softmax.
    """
    return {
        "top1_error": top_k_error(logits, target, 1),
        "top5_error": top_k_error(logits, target, 5),
        "nll": nll(logits, target),
        "brier": brier(logits, target),
        "ece": ece(logits, target),
        "adaptive_ece": adaptive_ece(logits, target),
        "classwise_ece": classwise_ece(logits, target),
        "aurc": aurc(logits, target),
        "recall_at_1": None if features is None or len(target) < 2 else recall_at_1(features, target),
    }


def top_k_error(logits: Tensor, target: Tensor, k: int) -> float:
    """Share of images whose class is not among the k largest logits, in percent; 0 if k reaches K.

    Equal logits rank by class index, as in argmax, so a constant model is not right by default.
    """
    check_predictions(logits, target)
    target_logit = logits.gather(1, target[:, None])
    wins_ties = torch.arange(logits.shape[1]) < target[:, None]
    rank = ((logits > target_logit) | ((logits == target_logit) & wins_ties)).sum(dim=1)
    return 100.0 * (rank >= k).double().mean().item()


def nll(logits: Tensor, target: Tensor) -> float:
    """Negative log-likelihood of the target, mean over images, in nats; inf if a target's logit is -inf."""
    check_predictions(logits, target)
    return F.cross_entropy(logits.double(), target).item()


def brier(logits: Tensor, target: Tensor) -> float:
    """Squared error of the probabilities, summed over classes, mean over images: 0..2, not percent.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.
    """
    check_predictions(logits, target)
    error = _softmax(logits)
    error[torch.arange(len(target)), target] -= 1
    return error.square_().sum(dim=1).mean().item()


@dataclass(frozen=True)
class ReliabilityBins:
    """The points of a reliability diagram, (num_bins,) each, shares in 0..1; NaN in an empty bin."""

    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(logits: Tensor, target: Tensor, num_bins: int) -> ReliabilityBins:
    """Count, accuracy and mean confidence of the images in equal-width bins (a, b] of confidence."""
    confidence, correct = _confidence_and_correct(logits, target)
    index = _bin_index(confidence, num_bins)
    count = torch.bincount(index, minlength=num_bins)
    accuracy = torch.bincount(index, correct, minlength=num_bins) / count
    return ReliabilityBins(count, accuracy, torch.bincount(index, confidence, minlength=num_bins) / count)


def ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """Expected calibration error, in percent: Σ |B|/N · |accuracy(B) − confidence(B)| over equal-width bins B = (a, b].

    Source: M. P. Naeini, G. F. Cooper, M. Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015, in the form of C. Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599.
    """
    bins = reliability_bins(logits, target, num_bins)
    gap = (bins.accuracy - bins.confidence).abs()
    return 100.0 * (bins.count * gap).nansum().item() / len(target)  # empty bins are NaN and weigh nothing


def adaptive_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """`ece` over equal-mass bins: images sorted by confidence, split into runs whose sizes differ by at most one.

    Images of equal confidence count with their mean accuracy, so the result does not depend on the order of the rows.

    Source: J. Mukhoti et al., "Calibrating deep neural networks using focal loss", NeurIPS 2020,
    https://arxiv.org/abs/2002.09437.
    """
    confidence, accuracy = _by_confidence(logits, target)
    gaps = (accuracy - confidence).tensor_split(num_bins)
    return 100.0 * sum(gap.sum().abs().item() for gap in gaps) / len(target)


def classwise_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS) -> float:
    """Mean over the K classes of the one-vs-all error Σ |B|/N · |share of class k in B − mean p_k in B|, in percent.

    The bins are those of `ece`, over p_k of every image. Most p_k are near 0, so values fall with K: compare equal K.

    Source: M. Kull et al., "Beyond temperature scaling", NeurIPS 2019, https://arxiv.org/abs/1910.12656.
    """
    check_predictions(logits, target)
    probability = _softmax(logits)
    num_images, num_classes = probability.shape
    total = 0.0
    for classes in torch.arange(num_classes).split(64):  # 26 MB per temporary for ImageNet's 50,000 images
        p = probability[:, classes]
        gap = p - (target[:, None] == classes).double()
        index = _bin_index(p, num_bins) + num_bins * torch.arange(len(classes))  # one row of bins per class
        total += torch.bincount(index.flatten(), gap.flatten()).abs().sum().item()
    return 100.0 * total / (num_images * num_classes)


def aurc(logits: Tensor, target: Tensor) -> float:
    """Area under the risk-coverage curve, in percent: mean over k = 1..N of the error rate of the k most confident.

    Images of equal confidence count with their mean error rate: the expectation over all orders of the tie.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019, https://arxiv.org/abs/1805.08206.
    """
    _, accuracy = _by_confidence(logits, target)
    risk = (1 - accuracy).cumsum(dim=0) / torch.arange(1, len(target) + 1)
    return 100.0 * risk.mean().item()


def recall_at_1(features: Tensor, target: Tensor, chunk_size: int = 1024) -> float:
    """Share of images whose nearest other image has the same class, in percent: L2, features not normalised.

    A class's only image counts as missed. Of equally near images, up to rounding, the first counts. Memory:
    chunk_size × N float64.

    Source: the CS-KD paper, after H. O. Song et al., CVPR 2016, https://arxiv.org/abs/1511.06452.
    """
    if features.ndim != 2 or target.shape != features.shape[:1] or len(target) < 2:
        raise ValueError(
            f"features {tuple(features.shape)} and target {tuple(target.shape)}: "
            "recall_at_1 needs shapes (N, D) and (N,) with N at least 2"
        )
    _check_rows("features", features.isfinite().all(dim=1))
    features = features.double()
    features = features - features.mean(dim=0)  # a large common mean makes |b|² − 2a·b cancel badly
    square = features.square().sum(dim=1)
    rounding = (features.shape[1] + 8) * torch.finfo(torch.float64).eps  # of a dot product, relative to |a|² + |b|²
    recalled = 0
    for rows in torch.arange(len(target)).split(chunk_size):
        distance = torch.addmm(square, features[rows], features.T, alpha=-2)  # without |a|², constant along a row
        distance[torch.arange(len(rows)), rows] = torch.inf  # by index: a duplicate is another image, at distance 0
        smallest, nearest = distance.min(dim=1, keepdim=True)
        tied = distance <= smallest + rounding * (square[rows, None] + square[nearest])
        first = tied.to(torch.uint8).argmax(dim=1)
        recalled += int((target[first] == target[rows]).sum())
    return 100.0 * recalled / len(target)


def check_predictions(logits: Tensor, target: Tensor) -> None:
    """Raises ValueError unless the metrics are defined on logits (N, K) and target (N,)."""
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
    # amax propagates NaN, so a finite maximum excludes NaN, +inf and a row of -inf. A single -inf is probability 0.
    _check_rows("logits", logits.amax(dim=1).isfinite())


def _check_rows(name: str, valid: Tensor) -> None:
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(f"{name}[{row}] is not finite, the first of {int((~valid).sum())} such rows of {len(valid)}")


def _softmax(logits: Tensor) -> Tensor:
    return torch.softmax(logits, dim=1, dtype=torch.float64)


def _bin_index(probability: Tensor, num_bins: int) -> Tensor:
    # j/num_bins correctly rounded, unlike linspace: a confidence of exactly 1/5 is in the bin that ends there.
    inner_edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(probability, inner_edges)  # (a, b]; the outer bins are open, so they take 0 and 1


def _confidence_and_correct(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Probability of the predicted class, and 1 if it is the target, (N,) each."""
    check_predictions(logits, target)
    return _softmax(logits).amax(dim=1), (logits.argmax(dim=1) == target).double()


def _by_confidence(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and accuracy, (N,) each, most confident first; equal confidences share their mean accuracy."""
    confidence, correct = _confidence_and_correct(logits, target)
    level, index, count = confidence.unique(return_inverse=True, return_counts=True)
    accuracy = torch.bincount(index, correct) / count
    return level.repeat_interleave(count).flip(0), accuracy.repeat_interleave(count).flip(0)
