"""Metrics of a set of predictions: accuracy, calibration, ranking by confidence, and retrieval by features.

Pure functions of CPU tensors: logits (N, K), target (N,) int64, features (N, D). Inputs are float32, as saved; sums are
float64, over chunks of rows. Rates are in percent, `nll` is in nats, `brier` lies in 0..2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cskd_hf.evaluation.confidence import (
    CHUNK_SIZE,
    NUM_BINS,
    adaptive_ece,
    aurc,
    aurc_logit_norm,
    check_rows,
    classwise_ece,
    ece,
    finite_rows,
    row_chunks,
)
from cskd_hf.evaluation.details import GROUPS, class_errors, group_errors, mean_error

DEFINITIONS: dict[str, str] = {
    "top1_error": "target is not the top class; percent",
    "top5_error": "target is not in the top 5; percent",
    "nll": "negative log-likelihood of the target; nats",
    "brier": "squared error of the probabilities, summed over classes, mean over images; 0 to 2",
    "ece": f"expected calibration error of the top class, {NUM_BINS} equal-width bins (a, b], L1; percent",
    "adaptive_ece": f"expected calibration error of the top class, {NUM_BINS} equal-mass bins, L1; percent",
    "classwise_ece": f"calibration error of p_k, {NUM_BINS} equal-width bins (a, b], L1, mean over K classes; percent",
    "aurc": "area under the risk-coverage curve, by the top class's probability, ties in expectation; percent",
    "aurc_logit_norm": "the same, by the top logit of the centred logits divided by their L2 norm; percent",
    "recall_at_1": "nearest other image has the same class, L2 on pooled features, not normalised; percent",
    "macro_error": "top-1 error of each class that has test images, mean over these classes; percent",
    **{f"{name}_error": f"macro_error of the classes with {size} training images; percent" for name, size in GROUPS},
}


def evaluate_predictions(
    logits: Tensor,
    target: Tensor,
    features: Tensor | None,
    temperature: float = 1.0,
    train_images: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """Every metric of `DEFINITIONS`, in its order.

    `recall_at_1` is None without features or a second image; the errors of head, medium and tail where `group_errors`
    leaves them out.

    Args:
        logits: (N, K).
        target: (N,) int64.
        features: (N, D).
        temperature: divides the logits, chunk by chunk.
        train_images: K, of each class; None if not known.

    Raises:
        ValueError: the input is empty, shapes disagree, a target is not a class, or a row has no softmax.

    Example:
        >>> import torch
        >>> from cskd_hf import evaluate_predictions
        >>> metrics = evaluate_predictions(torch.zeros(4, 10), torch.tensor([0, 1, 2, 3]), features=None)
        >>> metrics["top1_error"], metrics["ece"]
        (75.0, 15.0)
    """
    return {
        "top1_error": top_k_error(logits, target, 1),
        "top5_error": top_k_error(logits, target, 5),
        "nll": nll(logits, target, temperature=temperature),
        "brier": brier(logits, target, temperature=temperature),
        "ece": ece(logits, target, temperature=temperature),
        "adaptive_ece": adaptive_ece(logits, target, temperature=temperature),
        "classwise_ece": classwise_ece(logits, target, temperature=temperature),
        "aurc": aurc(logits, target, temperature=temperature),
        "aurc_logit_norm": aurc_logit_norm(logits, target),
        "recall_at_1": None if features is None or len(target) < 2 else recall_at_1(features, target),
        "macro_error": mean_error(errors := class_errors(logits, target)),
        **group_errors(errors, train_images),
    }


def top_k_error(logits: Tensor, target: Tensor, k: int) -> float:
    """Share of images whose class is not among the k largest logits, in percent; 0 if k reaches K.

    Equal logits rank by class index, as in argmax, so a constant model is not right by default.

    Example:
        >>> import torch
        >>> from cskd_hf import top_k_error
        >>> logits = torch.tensor([[2.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
        >>> top_k_error(logits, torch.tensor([0, 2]), k=1), top_k_error(logits, torch.tensor([0, 2]), k=2)
        (50.0, 0.0)
    """
    missed = 0
    for rows, labels in row_chunks(logits, target):
        classes = torch.arange(rows.shape[1])
        of_target = rows.gather(1, labels[:, None])
        rank = ((rows > of_target) | ((rows == of_target) & (classes < labels[:, None]))).sum(dim=1)
        missed += int((rank >= k).sum())
    return 100.0 * missed / len(target)


def nll(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Negative log-likelihood of the target, mean over images, in nats; inf if a target's logit is -inf.

    Example:
        >>> import torch
        >>> from cskd_hf import nll
        >>> round(nll(torch.zeros(2, 4), torch.tensor([0, 3])), 4)  # uniform: ln 4
        1.3863
    """
    return image_nll(logits, target, temperature).mean().item()


def image_nll(logits: Tensor, target: Tensor, temperature: float = 1.0) -> Tensor:
    """Negative log-likelihood of each image's target, (N,) float64, in nats."""
    chunks = row_chunks(logits, target, temperature)
    return torch.cat([-rows.log_softmax(dim=1).gather(1, labels[:, None])[:, 0] for rows, labels in chunks])


def brier(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Squared error of the probabilities, summed over classes, mean over images: 0..2, not percent.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.

    Example:
        >>> import torch
        >>> from cskd_hf import brier
        >>> brier(torch.zeros(2, 2), torch.tensor([0, 1]))  # (1 − ½)² + ½²
        0.5
    """
    total = 0.0
    for rows, labels in row_chunks(logits, target, temperature):
        error = rows.softmax(dim=1)
        error[torch.arange(len(labels)), labels] -= 1
        total += error.square_().sum().item()
    return total / len(target)


def recall_at_1(features: Tensor, target: Tensor, chunk_size: int | None = None) -> float:
    """Share of images whose nearest other image has the same class, in percent: L2, features not normalised.

    A class's only image counts as missed. Of equally near images, up to rounding, the first counts. Memory: the
    features in float64, and a few times chunk_size × N float64; by default 16 MB each.

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
    check_rows("features", finite_rows(features))
    features = features.to(torch.float64, copy=True)
    features -= features.mean(dim=0)  # a large common mean makes |b|² − 2a·b cancel badly
    square = torch.einsum("nd,nd->n", features, features)
    rounding = (features.shape[1] + 8) * torch.finfo(torch.float64).eps  # of a dot product, relative to |a|² + |b|²
    recalled = 0
    chunk_size = chunk_size or max(1, 2 * CHUNK_SIZE // len(target))
    for rows in torch.arange(len(target)).split(chunk_size):
        distance = torch.addmm(square, features[rows], features.T, alpha=-2)  # without |a|², constant along a row
        distance[torch.arange(len(rows)), rows] = torch.inf  # by index: a duplicate is another image, at distance 0
        smallest, nearest = distance.min(dim=1, keepdim=True)
        tied = distance <= smallest + rounding * (square[rows, None] + square[nearest])
        first = tied.to(torch.uint8).argmax(dim=1)
        recalled += int((target[first] == target[rows]).sum())
    return 100.0 * recalled / len(target)
