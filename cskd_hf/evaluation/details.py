"""Which classes and images a model gets wrong: results per class, confusions, the most confident mistakes.

Pure functions of CPU tensors: logits (N, K), target (N,) int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cskd_hf.evaluation.scores import top_log_odds

# Of classes, by their number of training images.
GROUPS = (("head", "more than 100"), ("medium", "20 to 100"), ("tail", "fewer than 20"))


class Confusion(NamedTuple):
    """How many images of one class are taken for another."""

    target: int
    predicted: int
    images: int


class ClassResult(NamedTuple):
    """One class: its images, those recognised, and how often it is predicted, rightly or wrongly."""

    label: int
    images: int
    correct: int
    predictions: int

    @property
    def error(self) -> float | None:
        """Top-1 error in percent; None without images."""
        return 100.0 * (self.images - self.correct) / self.images if self.images else None


def class_results(logits: Tensor, target: Tensor) -> list[ClassResult]:
    """One row per class, in the order of labels.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> [tuple(row) for row in class_results(logits, torch.tensor([0, 1, 1]))]
        [(0, 1, 1, 2), (1, 2, 1, 1)]
    """
    num_classes, predicted = logits.shape[1], logits.argmax(dim=1)
    counts = [
        torch.bincount(labels, minlength=num_classes).tolist()
        for labels in (target, target[predicted == target], predicted)
    ]
    return [ClassResult(label, *row) for label, row in enumerate(zip(*counts, strict=True))]


def class_errors(logits: Tensor, target: Tensor) -> list[float | None]:
    """Top-1 error of each class, in percent, in the order of labels; None for a class without images."""
    return [result.error for result in class_results(logits, target)]


def class_groups(train_images: Sequence[int] | None) -> dict[str, list[int]]:
    """The labels of head, medium and tail: classes of more than 100, of 20 to 100 and of fewer training images.

    {} if the classes are all in one group, or `train_images` (K,) are not known. The limits are those of Liu, Miao,
    Zhan, Wang, Gong, Yu, *Large-Scale Long-Tailed Recognition in an Open World*, CVPR 2019,
    https://arxiv.org/abs/1904.05160.

    Example:
        >>> class_groups([500, 101, 1])
        {'head': [0, 1], 'medium': [], 'tail': [2]}
    """
    groups: dict[str, list[int]] = {name: [] for name, _ in GROUPS}
    for label, images in enumerate(train_images or ()):
        groups["head" if images > 100 else "medium" if images >= 20 else "tail"].append(label)
    return {} if sum(map(bool, groups.values())) < 2 else groups


def confusions(logits: Tensor, target: Tensor) -> list[Confusion]:
    """Every kind of mistake that occurs, the most frequent first, then by label.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> [tuple(row) for row in confusions(logits, torch.tensor([0, 1, 1]))]
        [(1, 0, 1)]
    """
    answers = logits.argmax(dim=1)
    wrong = answers != target
    kinds, counts = torch.stack([target[wrong], answers[wrong]], dim=1).unique(dim=0, return_counts=True)
    rows = torch.cat([kinds, counts[:, None]], dim=1)[counts.argsort(descending=True, stable=True)].tolist()
    return [Confusion(label, predicted, images) for label, predicted, images in rows]


def most_confident_mistakes(logits: Tensor, target: Tensor, count: int) -> Tensor:
    """Indices of at most `count` misclassified images, most confident first; ties in image order.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
        >>> most_confident_mistakes(logits, torch.tensor([1, 1, 1]), 5).tolist()
        [1, 0]
    """
    wrong = (logits.argmax(dim=1) != target).nonzero()[:, 0]
    return wrong[top_log_odds(logits[wrong].double()).sort(descending=True, stable=True).indices[:count]]
