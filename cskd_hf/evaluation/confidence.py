"""Calibration errors and the ranking by confidence: does a model know when it is right?

Pure functions of CPU tensors: logits (N, K), target (N,) int64. Logits are divided by `temperature` first. Sums are
float64. All results are in percent. Besides its inputs a metric needs about 100 MB, whatever N and K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cskd_hf.evaluation import weighted
from cskd_hf.evaluation.rows import per_image, row_chunks
from cskd_hf.evaluation.scores import top_log_odds

NUM_BINS = 20  # the paper's ECE; its reliability diagrams have 10


@dataclass(frozen=True)
class ReliabilityBins:
    """The points of a reliability diagram, (num_bins,) each, shares in 0..1; NaN in an empty bin."""

    count: Tensor
    accuracy: Tensor
    confidence: Tensor


def reliability_bins(logits: Tensor, target: Tensor, num_bins: int, temperature: float = 1.0) -> ReliabilityBins:
    """Count, accuracy and mean confidence of the images in equal-width bins (a, b] of confidence."""
    confidence, correct = confidence_and_correct(logits, target, temperature)
    index = weighted.bin_index(confidence, num_bins)
    count = torch.bincount(index, minlength=num_bins)
    accuracy = torch.bincount(index, correct, minlength=num_bins) / count
    return ReliabilityBins(count, accuracy, torch.bincount(index, confidence, minlength=num_bins) / count)


def wilson_interval(share: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the 95 % interval of shares in 0..1, each observed on `count` images.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

    Example:
        >>> low, high = wilson_interval(torch.tensor([0.5, 1.0]), torch.tensor([10, 10]))
        >>> [round(end, 3) for end in (*low.tolist(), *high.tolist())]
        [0.237, 0.722, 0.763, 1.0]
    """
    share, z2 = share.double(), 1.959964**2
    centre, half = share + z2 / (2 * count), (z2 * (share * (1 - share) / count + z2 / (4 * count**2))).sqrt()
    low, high = (centre - half) / (1 + z2 / count), (centre + half) / (1 + z2 / count)
    return torch.minimum(low, share), torch.maximum(high, share)  # up to rounding, 0 and 1 are ends themselves


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
    confidence, correct = confidence_and_correct(logits, target, temperature)
    index = weighted.bin_index(confidence, num_bins)
    return 100.0 * weighted.binned_error(confidence, correct, ones(target), index).item()


def debiased_ece(logits: Tensor, target: Tensor, num_bins: int = NUM_BINS, temperature: float = 1.0) -> float:
    """The calibration error in L2, without the bias that chance within a bin adds, in percent; bins as for `ece`.

    `√ Σ |B|/N · ((accuracy − confidence)² − accuracy · (1 − accuracy) / (|B| − 1))`: each bin's squared gap less an
    unbiased estimate of its accuracy's variance; a negative sum gives 0. L2 exceeds L1 if the gaps differ.

    Source: A. Kumar, P. Liang, T. Ma, "Verified uncertainty calibration", NeurIPS 2019,
    https://arxiv.org/abs/1909.10155; R. Roelofs et al., AISTATS 2022, https://arxiv.org/abs/2012.08668. Both take
    equal-mass bins; here they are of equal width, to compare with `ece` [ours].

    Example:
        >>> import torch
        >>> from cskd_hf import debiased_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> debiased_ece(logits, torch.tensor([0, 1]))  # two images show little: 0.4² − ½ · ½ / 1 < 0
        0.0
    """
    confidence, correct = confidence_and_correct(logits, target, temperature)
    index = weighted.bin_index(confidence, num_bins)
    return 100.0 * weighted.debiased_error(confidence, correct, ones(target), index).item()


def smooth_ece(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Calibration error of the top class without bins, in percent: gaps smoothed over confidence by a Gaussian.

    The Gaussian is reflected at 0 and 1; its bandwidth is the one that equals the result. Within 0.05 of the authors'
    package relplot, which halves the bandwidth ten times where this function solves for it.

    Source: J. Błasiok, P. Nakkiran, "Smooth ECE: principled reliability diagrams via kernel smoothing", ICLR 2024,
    https://arxiv.org/abs/2309.12236.

    Example:
        >>> import torch
        >>> from cskd_hf import smooth_ece
        >>> logits = torch.tensor([[0.9, 0.1], [0.9, 0.1]]).log()
        >>> round(smooth_ece(logits, torch.tensor([0, 1])), 2)
        40.0
    """
    confidence, correct = confidence_and_correct(logits, target, temperature)
    return 100.0 * weighted.smooth_error(confidence, correct, ones(target)).item()


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
    confidence, correct = confidence_and_correct(logits, target, temperature)
    order, _ = confidence_and_correct(logits, target, temperature, top_log_odds)
    return 100.0 * weighted.equal_mass_error(order, confidence, correct, ones(target), num_bins).item()


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
    return 100.0 * weighted.classwise_error(chunks, logits.shape[1], ones(target), num_bins).item()


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
    order, correct = confidence_and_correct(logits, target, temperature, top_log_odds)
    return 100.0 * weighted.area_under_risk(order, correct, ones(target)).item()


def augrc(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Area under the generalized risk-coverage curve, in percent: errors accepted, as a share of all images.

    Unlike `aurc` it does not weigh the most confident errors above all others. With A the area under the ROC curve of
    the confidence as a detector of correct answers, it is `(1 − A) · accuracy · error + error² / 2`. Ties count as for
    `aurc`.

    Source: J. Traub et al., "Overcoming common flaws in the evaluation of selective classification systems", NeurIPS
    2024, https://arxiv.org/abs/2407.01032.

    Example:
        >>> import torch
        >>> from cskd_hf import augrc
        >>> logits = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
        >>> augrc(logits, torch.tensor([0, 1]))  # A = 1, error ½
        12.5
    """
    order, correct = confidence_and_correct(logits, target, temperature, top_log_odds)
    return 100.0 * weighted.area_under_generalized_risk(order, correct, ones(target)).item()


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
    order, correct = confidence_and_correct(logits, target, 1.0, normalized_top)
    return 100.0 * weighted.area_under_risk(order, correct, ones(target)).item()


def normalized_top(rows: Tensor) -> Tensor:
    """Confidence of `aurc_logit_norm`, (n,), of logits (n, K); rounded, since equal up to rounding is a tie."""
    centred = rows - rows.mean(dim=1, keepdim=True)
    return (centred.amax(dim=1) / centred.norm(dim=1)).nan_to_num(0.0).round(decimals=12)


def ones(target: Tensor) -> Tensor:
    """The weight of each image in the metric of all: (1, N)."""
    return torch.ones(1, len(target), dtype=torch.float64)


def top_probability(rows: Tensor) -> Tensor:
    """Probability of the top class, (n,), of logits (n, K)."""
    return rows.softmax(dim=1).amax(dim=1)


def confidence_and_correct(
    logits: Tensor, target: Tensor, temperature: float, confidence: Callable[[Tensor], Tensor] = top_probability
) -> tuple[Tensor, Tensor]:
    """A confidence in the predicted class, and 1 if it is the target, (N,) each."""
    (values,) = per_image(lambda rows, _: (confidence(rows),), logits, target, temperature)
    return values, (logits.argmax(dim=1) == target).double()
