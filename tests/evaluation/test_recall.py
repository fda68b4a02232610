"""Recall@1, also among ties and far from the origin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from cskd_hf.evaluation.metrics import recall_at_k


@pytest.mark.parametrize("chunk_size", [1, 64, 203, 1024])
@pytest.mark.parametrize(("k", "offset"), [(1, 0.0), (1, 1e4), (2, 0.0), (8, 0.0)])
def test_recall_agrees_with_scikit_learns_neighbours(k: int, chunk_size: int, offset: float) -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(7, (203,), generator=generator)
    features = torch.randn(7, 16, generator=generator)[target] + 2 * torch.randn(203, 16, generator=generator) + offset
    x = features.numpy().astype(np.float64)
    neighbours = NearestNeighbors(n_neighbors=k + 1, algorithm="kd_tree").fit(x).kneighbors(x, return_distance=False)
    assert (neighbours[:, 0] == np.arange(203)).all()
    expected = 100 * np.mean((target.numpy()[neighbours[:, 1:]] == target.numpy()[:, None]).any(axis=1))
    assert 20 < expected < 100
    assert recall_at_k(features, target, k, chunk_size) == pytest.approx(expected)


def test_recall_survives_an_offset_that_float32_products_do_not() -> None:
    # Two pairs, one step of float32 apart within and ten between, where 64 squares of 1e4 add up to 6.4e9.
    features = torch.full((4, 64), 1e4)
    features[:, 0] += torch.tensor([0.0, 1.0, 11.0, 12.0]) / 1024
    assert recall_at_k(features, torch.tensor([0, 0, 1, 1]), 1) == 100.0
    assert recall_at_k(features, torch.tensor([0, 1, 0, 1]), 1) == 0.0


def test_features_are_not_normalised() -> None:
    features = torch.tensor([[1.0, 0.0], [1.0, 1.0], [9.0, 0.0], [9.0, 6.0]])
    target = torch.tensor([0, 0, 1, 1])
    assert recall_at_k(features, target, 1) == 100.0
    assert recall_at_k(torch.nn.functional.normalize(features), target, 1) == 0.0  # other classes are nearer by angle


def test_a_duplicate_counts_as_another_image() -> None:
    features = torch.tensor([[1.0, 2.0], [5.0, 5.0], [1.0, 2.0], [5.0, 6.0]])
    assert recall_at_k(features, torch.tensor([0, 1, 0, 2]), 1) == 50.0


def test_the_only_image_of_a_class_counts_as_missed() -> None:
    assert recall_at_k(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]), 8) == 0.0
    features = torch.tensor([[0.0], [0.1], [5.0]])
    assert recall_at_k(features, torch.tensor([0, 0, 1]), 1) == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("features", [torch.full((300, 33), 0.1), torch.zeros(300, 33)])
def test_of_equally_near_images_the_first_counts(features: Tensor) -> None:
    target = torch.ones(300, dtype=torch.int64)
    target[0] = 0  # the first image is the neighbour of all others; the second is its own
    assert recall_at_k(features, target, 1, chunk_size=128) == 0.0
    target[1] = 0
    assert recall_at_k(features, target, 1, chunk_size=128) == pytest.approx(100 * 2 / 300)


def test_ties_on_a_grid_go_to_the_first_as_in_exact_arithmetic() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randint(4, (150, 3), generator=generator)
    target = torch.randint(3, (150,), generator=generator)
    hits = 0
    for i, x in enumerate(features.tolist()):
        distances = [sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) for y in features.tolist()]
        others = [(d, j) for j, d in enumerate(distances) if j != i]
        hits += int(target[min(others)[1]] == target[i])
    # Scale and offset are exact in binary, so ties stay ties; the mean is not, so the centred features are rounded.
    assert recall_at_k(features.double() * 0.375 + 11.25, target, 1, 64) == pytest.approx(100 * hits / 150)
