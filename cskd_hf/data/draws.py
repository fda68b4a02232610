"""Array functions behind the samplers: seeds of positions, ranks within classes, and shares of unequal classes."""

from __future__ import annotations

from typing import Literal

import numpy as np

Sampling = Literal["instance", "class_balanced", "sqrt"]


def rank_in_class(labels: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """(N,) int64: how many rows of the same class precede each row.

    Args:
        labels: (N,) non-negative integers.
        order: (N,) permutation of the rows in which they are counted; None: 0 … N − 1.
    """
    rows = np.arange(len(labels))
    order = rows if order is None else order
    by_class = order[np.argsort(labels[order], kind="stable")]
    count = np.bincount(labels)
    rank = np.empty_like(rows)
    rank[by_class] = rows - np.repeat(np.cumsum(count) - count, count)
    return rank


def augmentation_seeds(seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """63-bit seeds for the positions [start, stop): SplitMix64's finaliser over (seed, epoch, position).

    Hashing positions, unlike drawing from a stream, stores no seed and reaches any of them at once.
    """
    position = np.arange(start, stop, dtype=np.uint64)
    word = np.full(1, seed, dtype=np.uint64)
    for part in (np.full(1, epoch, dtype=np.uint64), position):
        word = (word + np.uint64(0x9E3779B97F4A7C15)) ^ (part * np.uint64(0xD1342543DE82EF95))
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word = word ^ (word >> np.uint64(31))
    return word >> np.uint64(1)


def dense(labels: np.ndarray) -> np.ndarray:
    """Labels as small non-negative integers: NumPy's stable sort of 16 bits is a radix sort, 15 times faster."""
    lowest, highest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if highest - lowest < 2**16:
        return (labels - lowest).astype(np.uint16)
    return np.unique(labels, return_inverse=True)[1].astype(np.int32)


def draws_per_class(counts: np.ndarray, sampling: Sampling, random: np.random.RandomState) -> np.ndarray:
    """(K,) int64: how many of an epoch's N = Σ counts samples each class gets.

    Largest remainders round `expected_draws`; chance decides between equal ones.

    Args:
        counts: (K,) images of each class; a class without images gets none.
    """
    quota = expected_draws(counts, sampling)
    draws = np.floor(quota).astype(np.int64)
    # Rounded, since equal remainders differ by rounding errors.
    order = np.lexsort((random.random_sample(len(counts)), -np.round(quota - draws, 9)))
    draws[order[: counts.sum() - draws.sum()]] += 1
    return draws


def expected_draws(counts: np.ndarray, sampling: Sampling) -> np.ndarray:
    """(K,) float64: the samples of each class in an epoch, before rounding.

    Class k gets a share in proportion to n_k^p, with p = 1, ½ or 0 for "instance", "sqrt" or "class_balanced" (Mahajan
    et al., Exploring the Limits of Weakly Supervised Pretraining, ECCV 2018, https://arxiv.org/abs/1805.00932; Kang et
    al., Decoupling Representation and Classifier for Long-Tailed Recognition, ICLR 2020,
    https://arxiv.org/abs/1910.09217).

    Args:
        counts: (K,) images of each class.
    """
    power = {"instance": 1.0, "sqrt": 0.5, "class_balanced": 0.0}[sampling]
    weights = np.where(counts > 0, counts.astype(float) ** power, 0.0)
    return counts.sum() * weights / weights.sum()
