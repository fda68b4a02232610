"""Metrics of a set of predictions: accuracy, calibration, ranking by confidence, and retrieval by features.

Pure functions of CPU tensors: logits (N, K), target (N,) int64, features (N, D). Inputs are float32, as saved; sums are
float64, over chunks of rows. Rates are in percent, `nll` is in nats, `brier` lies in 0..2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cskd_hf.evaluation import weighted
from cskd_hf.evaluation.calibration import fit_temperature
from cskd_hf.evaluation.confidence import NUM_BINS, classwise_ece, normalized_top, ones
from cskd_hf.evaluation.details import GROUPS, class_groups
from cskd_hf.evaluation.rows import finite_rows, per_image
from cskd_hf.evaluation.scores import ProperScores, neighbour_rank, proper_scores, target_rank

RECALLS = (1, 2, 4, 8)  # the ranks at which Song et al. print recall

DEFINITIONS: dict[str, str] = {
    "top1_error": "target is not the top class; percent",
    "top5_error": "target is not in the top 5; percent",
    "nll": "negative log-likelihood of the target; nats",
    "nll_refinement": "nll at the temperature that is best on these very images: what no temperature mends; nats",
    "nll_calibration": "nll minus nll_refinement: what the wrong temperature costs; nats",
    "brier": "squared error of the probabilities, summed over classes, mean over images; 0 to 2",
    "brier_refinement": "brier at the temperature of nll_refinement; 0 to 2",
    "brier_calibration": "brier minus brier_refinement, which may be below 0; -2 to 2",
    "ece": f"expected calibration error of the top class, {NUM_BINS} equal-width bins (a, b], L1; percent",
    "debiased_ece": f"the same in L2, without the bias of chance, {NUM_BINS} equal-width bins (a, b]; percent",
    "smooth_ece": "the same in L1 without bins, smoothed by a Gaussian whose bandwidth equals the result; percent",
    "adaptive_ece": f"expected calibration error of the top class, {NUM_BINS} equal-mass bins, L1; percent",
    "classwise_ece": f"calibration error of p_k, {NUM_BINS} equal-width bins (a, b], L1, mean over K classes; percent",
    "aurc": "area under the risk-coverage curve, by the top class's probability, ties in expectation; percent",
    "aurc_logit_norm": "the same, by the top logit of the centred logits divided by their L2 norm; percent",
    "augrc": "area under the generalized risk-coverage curve: accepted errors, as a share of all images; percent",
    "recall_at_1": "nearest other image has the same class, L2 on pooled features, not normalised; percent",
    **{f"recall_at_{k}": f"the same for one of the {k} nearest other images; percent" for k in RECALLS[1:]},
    "macro_error": "top-1 error of each class that has test images, mean over these classes; percent",
    **{f"{name}_error": f"macro_error of the classes with {size} training images; percent" for name, size in GROUPS},
}


# Of the top class's probability and log-odds, whether it is the target, and weights: (R,) shares in 0..1.
CALIBRATION_ERRORS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "ece": lambda p, _, hit, weight: weighted.binned_error(p, hit, weight, weighted.bin_index(p, NUM_BINS)),
    "debiased_ece": lambda p, _, hit, weight: weighted.debiased_error(p, hit, weight, weighted.bin_index(p, NUM_BINS)),
    "smooth_ece": lambda p, _, hit, weight: weighted.smooth_error(p, hit, weight),
    "adaptive_ece": lambda p, order, hit, weight: weighted.equal_mass_error(order, p, hit, weight, NUM_BINS),
}


@dataclass(frozen=True)
class ImageScores:
    """What the metrics of N images depend on, except `classwise_ece`, which needs every probability.

    Attributes:
        rank: of the target among the logits.
        logit_norm: the confidence of `aurc_logit_norm`.
        at: the scores at the temperature in use.
        refined: those at the temperature that is best on these images; None if it is undefined, for a logit of -inf.
        neighbour: of the nearest image of the same class; None without features or a second image.
        groups: labels of head, medium and tail, as `class_groups` returns them.
    """

    target: Tensor
    rank: Tensor
    logit_norm: Tensor
    at: ProperScores
    refined: ProperScores | None
    neighbour: Tensor | None
    groups: Mapping[str, Sequence[int]]


def image_scores(
    logits: Tensor,
    target: Tensor,
    features: Tensor | None,
    temperatures: tuple[float, ...] = (1.0,),
    train_images: Sequence[int] | None = None,
) -> list[ImageScores]:
    """The scores of all images, at each temperature."""
    if train_images is not None and len(train_images) != logits.shape[1]:
        raise ValueError(f"train_images of {len(train_images)} classes, but {logits.shape[1]} logits")
    at = [proper_scores(logits, target, temperature) for temperature in temperatures]
    rank = target_rank(logits, target)
    (logit_norm,) = per_image(lambda rows, _: (normalized_top(rows),), logits, target)
    refined = None
    if finite_rows(logits).all():
        refined = proper_scores(logits, target, fit_temperature(logits, target))
    neighbour = None if features is None or len(target) < 2 else neighbour_rank(features, target)
    groups = class_groups(train_images)
    return [ImageScores(target, rank, logit_norm, scores, refined, neighbour, groups) for scores in at]


def weighted_metrics(scores: ImageScores, weight: Tensor) -> dict[str, Tensor | None]:
    """Every metric but `classwise_ece` of images with weights (R, N): (R,) each; None if it is undefined.

    `refined` and the neighbours of an image are those among all images.
    """
    correct = (scores.rank == 0).double()
    nll, brier, confidence, order = scores.at
    values: dict[str, Tensor | None] = {
        "top1_error": 100 * weighted.mean(1 - correct, weight),
        "top5_error": 100 * weighted.mean((scores.rank >= 5).double(), weight),
    }
    for name, own in (("nll", nll), ("brier", brier)):
        mean = values[name] = weighted.mean(own, weight)
        refinement = None if scores.refined is None else weighted.mean(getattr(scores.refined, name), weight)
        values[f"{name}_refinement"] = refinement
        values[f"{name}_calibration"] = None if refinement is None else mean - refinement
    values |= {name: 100 * error(confidence, order, correct, weight) for name, error in CALIBRATION_ERRORS.items()}
    values |= {
        "aurc": 100 * weighted.area_under_risk(order, correct, weight),
        "aurc_logit_norm": 100 * weighted.area_under_risk(scores.logit_norm, correct, weight),
        "augrc": 100 * weighted.area_under_generalized_risk(order, correct, weight),
    }
    for k in RECALLS:
        recalled = None if scores.neighbour is None else (scores.neighbour < k).double()
        values[f"recall_at_{k}"] = None if recalled is None else 100 * weighted.mean(recalled, weight)
    of_class = 100 * weighted.class_means(1 - correct, weight, scores.target)
    values["macro_error"] = of_class.nanmean(dim=1)
    for name, _ in GROUPS:
        own = of_class[:, [label for label in scores.groups.get(name, ()) if label < of_class.shape[1]]]
        values[f"{name}_error"] = None if own.isnan().all() else own.nanmean(dim=1)
    return values


def evaluate_predictions(
    logits: Tensor,
    target: Tensor,
    features: Tensor | None,
    temperature: float = 1.0,
    train_images: Sequence[int] | None = None,
) -> dict[str, float | None]:
    """Every metric of `DEFINITIONS`, in its order.

    Recall is None without features or a second image; the errors of head, medium and tail if the
    classes are all in one group, or the group has no image.

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
        >>> metrics["top1_error"], round(metrics["ece"], 4)
        (75.0, 15.0)
    """
    (scores,) = image_scores(logits, target, features, (temperature,), train_images)
    return metric_values(scores, logits, target, temperature)


def evaluate_both(
    logits: Tensor,
    target: Tensor,
    features: Tensor | None,
    temperature: float | None,
    train_images: Sequence[int] | None = None,
) -> tuple[dict[str, float | None], dict[str, float | None] | None]:
    """Every metric with the logits as trained, and divided by the temperature; None without one."""
    temperatures = (1.0,) if temperature is None else (1.0, temperature)
    scores = image_scores(logits, target, features, temperatures, train_images)
    values = [metric_values(own, logits, target, divisor) for own, divisor in zip(scores, temperatures, strict=True)]
    return values[0], values[1] if len(values) == 2 else None


def metric_values(scores: ImageScores, logits: Tensor, target: Tensor, temperature: float) -> dict[str, float | None]:
    found = weighted_metrics(scores, ones(target))
    values = {name: None if value is None else value.item() for name, value in found.items()}
    values["classwise_ece"] = classwise_ece(logits, target, temperature=temperature)
    return {name: values[name] for name in DEFINITIONS}


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
    return 100.0 * weighted.mean((target_rank(logits, target) >= k).double(), ones(target)).item()


def nll(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Negative log-likelihood of the target, mean over images, in nats; inf if a target's logit is -inf.

    Example:
        >>> import torch
        >>> from cskd_hf import nll
        >>> round(nll(torch.zeros(2, 4), torch.tensor([0, 3])), 4)  # uniform: ln 4
        1.3863
    """
    return weighted.mean(proper_scores(logits, target, temperature).nll, ones(target)).item()


def brier(logits: Tensor, target: Tensor, temperature: float = 1.0) -> float:
    """Squared error of the probabilities, summed over classes, mean over images: 0..2, not percent.

    Source: G. W. Brier, "Verification of forecasts expressed in terms of probability", Monthly Weather Review 1950.

    Example:
        >>> import torch
        >>> from cskd_hf import brier
        >>> brier(torch.zeros(2, 2), torch.tensor([0, 1]))  # (1 − ½)² + ½²
        0.5
    """
    return weighted.mean(proper_scores(logits, target, temperature).brier, ones(target)).item()


def recall_at_k(features: Tensor, target: Tensor, k: int, chunk_size: int | None = None) -> float:
    """Share of images with one of the same class among the k nearest others, in percent: L2, features not normalised.

    A class's only image counts as missed. Of equally near images, up to rounding, the first counts. Memory: the
    features in float64, and a few times chunk_size × N float64; by default 16 MB each.

    Source: the CS-KD paper, after H. O. Song et al., CVPR 2016, https://arxiv.org/abs/1511.06452.

    Example:
        >>> import torch
        >>> from cskd_hf import recall_at_k
        >>> features = torch.tensor([[0.0], [0.1], [5.0], [5.2]])
        >>> recall_at_k(features, torch.tensor([0, 0, 1, 2]), k=1)
        50.0
    """
    return 100.0 * weighted.mean((neighbour_rank(features, target, chunk_size) < k).double(), ones(target)).item()
