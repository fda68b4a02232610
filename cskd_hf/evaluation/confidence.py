"""Calibration errors and the ranking by confidence: does a model know when it is right?

Pure functions of CPU tensors: logits (N, K), target (N,) int64. Logits are divided by `temperature` first. Sums are
float64. All results are in percent. Besides its inputs a metric needs about 100 MB, whatever N and K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NUM_BINS = 20  # the paper's ECE; its reliability diagrams have 10
CHUNK_SIZE = 2**20  # logits in a chunk of rows: 8 MB per temporary in float64


@dataclass(frozen=True)
class ReliabilityBins:
    """The points of a reliability diagram, (num_bins,) each, shares in 0..1; NaN in an empty bin."""

    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(logits: Tensor, target: Tensor, num_bins: int, temperature: float = 1.0) -> ReliabilityBins:
    """Count, accuracy and mean confidence of the images in equal-width bins (a, b] of confidence."""
    confidence, correct = _confidence_and_correct(logits, target, temperature)
    index = _bin_index(confidence, num_bins)
    count = torch.bincount(index, minlength=num_bins)
    accuracy = torch.bincount(index, correct, minlength=num_bins) / count
    return ReliabilityBins(count, accuracy, torch.bincount(index, confidence, minlength=num_bins) / count)


def ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS, temperature: float = 1.0) -> float:
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
    bins = reliability_bins(logits, target, num_bins, temperature)
    gap = (bins.accuracy - bins.confidence).abs()
    return 100.0 * (bins.count * gap).nansum().item() / len(target)  # empty bins are NaN and weigh nothing


def adaptive_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS, temperature: float = 1.0) -> float:
    """`ece` over equal-mass bins: images sorted by confidence, split into runs whose sizes differ by at most one.

    Images of equal confidence count with their mean accuracy, so the result does not depend on the order of the rows.

    Source: J. Mukhoti et al., "Calibrating deep neural networks using focal loss", NeurIPS 2020,
    https://arxiv.org/abs/2002.09437.

    Example:
        >>> import torch
        >>> from cskd_hf import adaptive_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(adaptive_ece(logits, torch.tensor([0, 1]), num_bins=1), 2)
        40.0
    """
    confidence, accuracy = _by_confidence(*_confidence_and_correct(logits, target, temperature))
    gaps = (accuracy - confidence).tensor_split(num_bins)
    return 100.0 * sum(gap.sum().abs().item() for gap in gaps) / len(target)


def classwise_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS, temperature: float = 1.0) -> float:
    """Mean over the K classes of the one-vs-all error Σ |B|/N · |share of class k in B − mean p_k in B|, in percent.

    The bins are those of `ece`, over p_k of every image. Most p_k are near 0, so values fall with K: compare equal K.

    Source: M. Kull et al., "Beyond temperature scaling", NeurIPS 2019, https://arxiv.org/abs/1910.12656.

    Example:
        >>> import torch
        >>> from cskd_hf import classwise_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(classwise_ece(logits, torch.tensor([0, 1])), 2)  # 40 points too high for class 0, too low for class 1
        40.0
    """
    chunks = row_chunks(logits, target, temperature)
    num_images, num_classes = logits.shape
    gap = torch.zeros(num_classes * num_bins, dtype=torch.float64)  # one row of bins per class
    first_bin = num_bins * torch.arange(num_classes)
    for scaled, labels in chunks:
        p = scaled.softmax(dim=1)
        index = _bin_index(p, num_bins) + first_bin
        p[torch.arange(len(labels)), labels] -= 1
        gap.scatter_add_(0, index.flatten(), p.flatten())
    return 100.0 * gap.abs().sum().item() / (num_images * num_classes)


def aurc(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Area under the risk-coverage curve, in percent: mean over k = 1..N of the error rate of the k most confident.

    Images of equal confidence count with their mean error rate: the expectation over all orders of the tie.

    Source: Y. Geifman, G. Uziel, R. El-Yaniv, "Bias-reduced uncertainty estimation for deep neural classifiers",
    ICLR 2019, https://arxiv.org/abs/1805.08206.

    Example:
        >>> import torch
        >>> from cskd_hf import aurc
        >>> logits = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> aurc(logits, torch.tensor([0, 1]))  # risks 0 and ½: the error is the less confident prediction
        25.0
    """
    return _area_under_risk(*_confidence_and_correct(logits, target, temperature))


def aurc_logit_norm(logits: Tensor, target: Tensor) -> float:
    """`aurc` with the largest normalised logit as the confidence: max_k (z_k − z̄) / ‖z − z̄‖₂, z̄ the mean over classes.

    Regularisers that suppress the largest logit, such as label smoothing, spoil the ranking by probability; the norm
    undoes it. The ranking does not depend on a temperature. The authors choose the norm's p on hold-out images; here it
    is 2 [ours]. With K = 2 all images tie. A row of equal logits, or with one of -inf, ranks last.

    Source: L. F. P. Cattelan, D. Silva, "How to fix a broken confidence estimator", UAI 2024,
    https://arxiv.org/abs/2305.15508; for label smoothing G. Xia et al., ICLR 2025, https://arxiv.org/abs/2403.14715.

    Example:
        >>> import torch
        >>> from cskd_hf import aurc_logit_norm
        >>> logits = torch.tensor([[3.0, 0.0, 0.0], [9.0, 8.0, 0.0]])  # the second stands out less among its logits
        >>> aurc_logit_norm(logits, torch.tensor([0, 1]))
        25.0
    """
    confidence = []
    for rows, _ in row_chunks(logits, target):
        centred = rows - rows.mean(dim=1, keepdim=True)
        confidence.append((centred.amax(dim=1) / centred.norm(dim=1)).nan_to_num(0.0))
    correct = (logits.argmax(dim=1) == target).double()
    return _area_under_risk(torch.cat(confidence).round(decimals=12), correct)  # equal up to rounding is a tie


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
    check_rows("logits", logits.amax(dim=1).isfinite())


def check_rows(name: str, valid: Tensor) -> None:
    """Raises ValueError naming the first row of tensor `name` that is not valid, (N,) bool."""
    if not valid.all():
        row = int((~valid).nonzero()[0])
        raise ValueError(f"{name}[{row}] is not finite, the first of {int((~valid).sum())} such rows of {len(valid)}")


def finite_rows(logits: Tensor) -> Tensor:
    """(N,) bool: the rows without NaN and infinity."""
    low, high = logits.aminmax(dim=1)  # both propagate NaN
    return low.isfinite() & high.isfinite()


def row_chunks(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Iterator[tuple[Tensor, Tensor]]:
    """Checked predictions in chunks of rows: logits / temperature (n, K) in float64, a copy, and target (n,).

    Raises:
        ValueError: as for `check_predictions`, or the temperature is not a finite number above 0.
    """
    check_predictions(logits, target)
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; needs a finite number above 0")
    num_rows = max(1, CHUNK_SIZE // logits.shape[1])
    chunks = zip(logits.split(num_rows), target.split(num_rows), strict=True)
    return ((rows.double() / temperature, labels) for rows, labels in chunks)


def _bin_index(probability: Tensor, num_bins: int) -> Tensor:
    # j/num_bins correctly rounded, unlike linspace: a confidence of exactly 1/5 is in the bin that ends there.
    inner_edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(probability, inner_edges)  # (a, b]; the outer bins are open, so they take 0 and 1


def _confidence_and_correct(logits: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Probability of the predicted class, and 1 if it is the target, (N,) each."""
    confidence = [scaled.softmax(dim=1).amax(dim=1) for scaled, _ in row_chunks(logits, target, temperature)]
    return torch.cat(confidence), (logits.argmax(dim=1) == target).double()


def _area_under_risk(confidence: Tensor, correct: Tensor) -> float:
    """Mean over k = 1..N of the error rate of the k most confident, in percent."""
    _, accuracy = _by_confidence(confidence, correct)
    risk = (1 - accuracy).cumsum(dim=0) / torch.arange(1, len(correct) + 1)
    return 100.0 * risk.mean().item()


def _by_confidence(confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor]:
    """Confidence and accuracy, (N,) each, most confident first; equal confidences share their mean accuracy."""
    level, index, count = confidence.unique(return_inverse=True, return_counts=True)
    accuracy = torch.bincount(index, correct) / count
    return level.repeat_interleave(count).flip(0), accuracy.repeat_interleave(count).flip(0)
