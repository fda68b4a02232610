"""IPS: what it swaps, and that the rest is mutual CS-KD."""

from __future__ import annotations

import pytest
import torch
from method_cases import batch_for, objective_of

from cskd_hf.methods import IPS, Batch, MutualCSKD
from cskd_hf.methods.ips import swap_patches

PAIRS = 200


@pytest.mark.parametrize(("size", "patch_size"), [(8, 4), (7, 3), (5, 8)])
@pytest.mark.parametrize("swap_prob", [0.0, 0.3, 1.0])
def test_whole_patches_swap_within_a_pair_at_the_same_place(size: int, patch_size: int, swap_prob: float) -> None:
    torch.manual_seed(0)
    images = torch.arange(2 * PAIRS * 3 * size * size, dtype=torch.float32).view(2 * PAIRS, 3, size, size)
    before = images.clone()
    anchors, partners = swap_patches(images, patch_size, swap_prob).chunk(2)
    assert torch.equal(images, before)
    swapped = (anchors == before[PAIRS:])[:, 0]
    for original, other, result in (
        (before[:PAIRS], before[PAIRS:], anchors),
        (before[PAIRS:], before[:PAIRS], partners),
    ):
        assert torch.equal(result, torch.where(swapped[:, None], other, original))
    patches = [part for rows in swapped.split(patch_size, dim=1) for part in rows.split(patch_size, dim=2)]
    assert len(patches) == (-(-size // patch_size)) ** 2
    shares = torch.stack([patch.float().mean(dim=(1, 2)) for patch in patches], dim=1)
    assert set(shares.unique().tolist()) <= {0.0, 1.0}  # never part of a patch
    assert shares.mean().item() == pytest.approx(swap_prob / 2, abs=0.08)
    untouched = (1 - swap_prob) + swap_prob * 0.5 ** len(patches)
    assert (shares.sum(dim=1) == 0).float().mean().item() == pytest.approx(untouched, abs=0.08)


def test_the_loss_is_mutual_cskds_on_the_swapped_pairs() -> None:
    settings = {"temperature": 2.0, "distill_loss_weight": 3.0, "smoothing": 0.1}
    batch = batch_for(IPS())
    batch = batch._replace(images=batch.images / 64)
    objective = objective_of(IPS(swap_prob=1.0, patch_size=4, **settings))
    torch.manual_seed(1)
    result = objective(batch)
    torch.manual_seed(1)
    swapped = Batch(swap_patches(batch.images, 4, 1.0), *batch[1:])
    expected = objective_of(MutualCSKD(**settings))(swapped)
    assert all(torch.equal(result[key], value) for key, value in expected.items())
    assert not torch.equal(result["loss"], objective_of(MutualCSKD(**settings))(batch)["loss"])
