"""Metrics of images with weights: a bootstrap resample is a row of counts, so all of them are computed at once.

Pure functions: values (N,) float64 per image, weight (R, N) float64, integers that sum to N in each of R resamples.
They return (R,) shares in 0..1. All weights 1 give the metric itself. Images of equal confidence count with their mean.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from scipy.fft import dct
from torch import Tensor

GRID = 1001  # points on which smooth_error smooths: 0.001 apart, relplot's smallest bandwidth


def bin_index(probability: Tensor, num_bins: int) -> Tensor:
    """The equal-width bin (a, b] of each probability."""
    # j/num_bins correctly rounded, unlike linspace: a confidence of exactly 1/5 is in the bin that ends there.
    inner_edges = torch.arange(1, num_bins, dtype=torch.float64) / num_bins
    return torch.bucketize(probability, inner_edges)  # (a, b]; the outer bins are open, so they take 0 and 1


def mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean over images; inf if an image with a weight has an infinite value."""
    infinite = values.isinf()
    total = weight @ values.masked_fill(infinite, 0.0)
    return (total / weight.sum(dim=1)).masked_fill(weight @ infinite.double() > 0, torch.inf)


def binned_error(confidence: Tensor, correct: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """Σ |B|/N · |accuracy(B) − confidence(B)| over the bins that `index` (N,) names."""
    return _sums(weight * (correct - confidence), index).abs().sum(dim=1) / weight.sum(dim=1)


def debiased_error(confidence: Tensor, correct: Tensor, weight: Tensor, index: Tensor) -> Tensor:
    """√ Σ |B|/N · ((accuracy − confidence)² − accuracy · (1 − accuracy) / (|B| − 1)); no less than 0.

    A bin of one image, whose variance is unknown, counts 0.
    """
    count = _sums(weight, index)
    accuracy, gap = (_sums(weight * values, index) / count for values in (correct, correct - confidence))
    squared = count * (gap.square() - accuracy * (1 - accuracy) / (count - 1))
    return (squared.where(count > 1, 0.0).sum(dim=1) / weight.sum(dim=1)).clamp_min(0.0).sqrt()


def equal_mass_error(order: Tensor, confidence: Tensor, correct: Tensor, weight: Tensor, num_bins: int) -> Tensor:
    """`binned_error` over runs of equally many images, greatest `order` first; the first get the images left over."""
    count, gap = _cumulated(order, correct - confidence, weight)
    num_images = round(weight[0].sum().item())
    sizes = torch.tensor([num_images // num_bins + (b < num_images % num_bins) for b in range(num_bins)])
    edges = torch.cat([torch.zeros(1), sizes.cumsum(dim=0)]).double().expand(len(weight), -1).contiguous()
    level = torch.searchsorted(count[:, 1:].contiguous(), edges).clamp_max(count.shape[1] - 2)
    below, above = count.gather(1, level), count.gather(1, level + 1)
    share = ((edges - below) / (above - below)).nan_to_num(0.0)
    at_edge = gap.gather(1, level).lerp(gap.gather(1, level + 1), share)
    return at_edge.diff(dim=1).abs().sum(dim=1) / num_images


def classwise_error(chunks: Iterable[tuple[Tensor, Tensor]], num_classes: int, weight: Tensor, num_bins: int) -> Tensor:
    """Mean over classes k of the `binned_error` of p_k against the share of class k.

    Args:
        chunks: logits (n, K) float64, and target (n,), in the order of the images.
    """
    gap = torch.zeros(len(weight), num_classes * num_bins, dtype=torch.float64)
    start = 0
    for rows, labels in chunks:
        own = weight[:, start : start + len(labels)]
        start += len(labels)
        p = rows.softmax(dim=1)
        index = bin_index(p, num_bins)
        p[torch.arange(len(labels)), labels] -= 1
        gap[:, ::num_bins] += own @ p  # as if all were in the first bin, where most of them are
        row, label = index.nonzero(as_tuple=True)
        moved, first_bin = own[:, row] * p[row, label], label * num_bins
        gap.index_add_(1, first_bin, -moved).index_add_(1, first_bin + index[row, label], moved)
    return gap.abs().sum(dim=1) / (weight.sum(dim=1) * num_classes)


def smooth_error(confidence: Tensor, correct: Tensor, weight: Tensor) -> Tensor:
    """∫ |Σ (correct − confidence) · K_σ(confidence, t)| dt / N, at the bandwidth σ that equals the result.

    K is the Gaussian, reflected at 0 and 1. The result falls as σ grows, so one bandwidth fits; none is below 0.001.
    """
    place = confidence * (GRID - 1)
    lower = place.long().clamp_max(GRID - 2)
    gap, upper_share = weight * (correct - confidence) / weight.sum(dim=1, keepdim=True), place - lower
    mass = torch.zeros(len(weight), GRID, dtype=torch.float64)
    mass.index_add_(1, lower, gap * (1 - upper_share)).index_add_(1, lower + 1, gap * upper_share)
    mass[:, [0, -1]] *= 2  # the cosine transform halves its ends
    spectrum = torch.from_numpy(dct(mass.numpy(), type=1)) / 2
    frequency = torch.pi * torch.arange(GRID)

    def error(bandwidth: Tensor) -> Tensor:
        exponent = -0.5 * (bandwidth[:, None] * frequency).square()
        smoothed = spectrum * exponent.clamp_min(-50).exp()  # arithmetic with subnormal numbers is slow
        return torch.trapezoid(torch.from_numpy(dct(smoothed.numpy(), type=1)).abs(), dim=1) / (GRID - 1)

    low, high = torch.full((len(weight),), 1 / (GRID - 1), dtype=torch.float64), torch.ones(len(weight)).double()
    for _ in range(20):  # to 1e-6
        middle = (low + high) / 2
        too_small = error(middle) > middle
        low, high = middle.where(too_small, low), high.where(too_small, middle)
    return error(low)


def area_under_risk(order: Tensor, correct: Tensor, weight: Tensor) -> Tensor:
    """Mean over k = 1..N of the error rate of the k images of the greatest `order`, (N,)."""
    count, errors = _cumulated(order, 1 - correct, weight)
    size = count.diff(dim=1)
    rate = (errors.diff(dim=1) / size).nan_to_num(0.0)
    # Σ (E + (k − a) · rate) / k over the images k = a + 1 … a + size of a level
    harmonic = torch.cat([torch.zeros(1), (1 / torch.arange(1, len(order) + 1).double()).cumsum(dim=0)])
    sum_of_inverses = harmonic[count.long()].diff(dim=1)
    risk = rate * size + (errors[:, :-1] - count[:, :-1] * rate) * sum_of_inverses
    return risk.sum(dim=1) / len(order)


def area_under_generalized_risk(order: Tensor, correct: Tensor, weight: Tensor) -> Tensor:
    """∫ over coverage of the share of all images that are accepted and wrong."""
    count, errors = _cumulated(order, 1 - correct, weight)
    return torch.trapezoid(errors, count, dim=1) / len(order) ** 2


def class_means(values: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """Mean over the images of each class, (R, classes up to the greatest in `target`); NaN for one without images."""
    return _sums(weight * values, target) / _sums(weight, target)


def _sums(values: Tensor, index: Tensor) -> Tensor:
    """(R, bins): values (R, N) summed by bin."""
    total = torch.zeros(len(values), int(index.max()) + 1, dtype=torch.float64)
    return total.index_add_(1, index, values)


def _cumulated(order: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and weighted values of the levels of `order`, summed from the greatest on: (R, levels + 1)."""
    level = order.neg().unique(return_inverse=True)[1]
    sums = (_sums(part, level).cumsum(dim=1) for part in (weight, weight * values))
    count, total = (torch.nn.functional.pad(part, (1, 0)) for part in sums)
    return count, total
