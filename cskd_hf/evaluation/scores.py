"""What each image contributes to the metrics: enough for them, and for their intervals, without the logits.

CPU tensors: logits (N, K), target (N,) int64, features (N, D). A score is (N,).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cskd_hf.evaluation import rows
from cskd_hf.evaluation.rows import check_rows, finite_rows, per_image


class ProperScores(NamedTuple):
    """Scores of the probabilities, (N,) float64 each: NLL of the target, Brier score, the top class's probability and
    log-odds."""

    nll: Tensor
    brier: Tensor
    confidence: Tensor
    log_odds: Tensor


def proper_scores(logits: Tensor, target: Tensor, temperature: float = 1.0) -> ProperScores:
    """The scores of softmax(logits / temperature), in one pass."""

    def scores(scaled: Tensor, labels: Tensor) -> ProperScores:
        own = labels[:, None]
        nll = -scaled.log_softmax(dim=1).gather(1, own)[:, 0]
        p = scaled.softmax(dim=1)
        confidence = p.amax(dim=1)
        brier = p.scatter_add_(1, own, -torch.ones_like(own, dtype=p.dtype)).square_().sum(dim=1)
        return ProperScores(nll, brier, confidence, top_log_odds(scaled))

    return ProperScores(*per_image(scores, logits, target, temperature))


def top_log_odds(rows: Tensor) -> Tensor:
    """log p / (1 − p) of the top class, (n,), of logits (n, K) float64: ranks as p, without ties where p rounds to 1.

    Rounded, since equal up to rounding is a tie; the largest float if no other class has a probability.
    """
    top, label = rows.max(dim=1, keepdim=True)
    log_odds = top - rows.scatter(1, label, -torch.inf).logsumexp(dim=1, keepdim=True)
    return log_odds[:, 0].round(decimals=10).nan_to_num()


def target_rank(logits: Tensor, target: Tensor) -> Tensor:
    """How many classes precede the target, (N,); equal logits rank by class index, as in argmax."""

    def ranks(rows: Tensor, labels: Tensor) -> tuple[Tensor]:
        of_target, classes = rows.gather(1, labels[:, None]), torch.arange(rows.shape[1])
        return (((rows > of_target) | ((rows == of_target) & (classes < labels[:, None]))).sum(dim=1),)

    return per_image(ranks, logits, target)[0]


def neighbour_rank(features: Tensor, target: Tensor, chunk_size: int | None = None) -> Tensor:
    """How many images of other classes precede the nearest other image of the same class, (N,).

    By L2, features not normalised. Of equally near images, up to rounding, the first precedes. It is inf for a
    class's only image. Memory: the features in float64, and a few times chunk_size × N float64; by default 16 MB each.
    """
    if features.ndim != 2 or target.shape != features.shape[:1] or len(target) < 2:
        raise ValueError(
            f"features {tuple(features.shape)} and target {tuple(target.shape)}: "
            "recall needs shapes (N, D) and (N,) with N at least 2"
        )
    check_rows("features", finite_rows(features))
    features = features.to(torch.float64, copy=True)
    features -= features.mean(dim=0)  # a large common mean makes |b|² − 2a·b cancel badly
    square = torch.einsum("nd,nd->n", features, features)
    rounding = (features.shape[1] + 8) * torch.finfo(torch.float64).eps  # of a dot product, relative to |a|² + |b|²
    images, ranks = torch.arange(len(target)), []
    for own in images.split(chunk_size or max(1, 2 * rows.CHUNK_SIZE // len(target))):
        distance = torch.addmm(square, features[own], features.T, alpha=-2)  # without |a|², constant along a row
        distance[torch.arange(len(own)), own] = torch.inf  # by index: a duplicate is another image, at distance 0
        other = target[own, None] != target
        smallest, nearest = distance.masked_fill(other, torch.inf).min(dim=1, keepdim=True)
        tolerance = rounding * (square[own, None] + square[nearest])
        first = ((distance <= smallest + tolerance) & ~other).to(torch.uint8).argmax(dim=1, keepdim=True)
        precedes = (distance < smallest - tolerance) | ((distance <= smallest + tolerance) & (images < first))
        rank = (precedes & other).sum(dim=1).double()
        ranks.append(rank.masked_fill(smallest[:, 0].isinf(), torch.inf))
    return torch.cat(ranks)
