"""IPS: mutual distillation within a class, between images that have swapped patches.

Choi, Jeon, Shukla, Turaga, *Intra-class Patch Swap for Self-Distillation*, Neurocomputing 2025,
https://arxiv.org/abs/2505.14124.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from cskd_hf.batch import Batch
from cskd_hf.methods.base import Share
from cskd_hf.methods.mutual_cskd import MutualCSKD

if TYPE_CHECKING:
    from torch import Tensor, nn


def swap_patches(images: Tensor, patch_size: int, swap_prob: float) -> Tensor:
    """Swap patches at random places between the halves of a batch; the argument stays intact.

    Args:
        images: (2B, C, H, W), [anchors | partners].
        patch_size: side m of the square patches, in pixels; those at the right and bottom edges may be smaller.
        swap_prob: p, of a pair to swap at all; its patches then swap with probability ½ each.

    Returns:
        (2B, C, H, W), drawn from the device's torch generator.
    """
    import torch

    anchors, partners = images.chunk(2)
    height, width = images.shape[2:]
    rows, columns = -(-height // patch_size), -(-width // patch_size)
    swapped = torch.rand(len(anchors), 1, rows, columns, device=images.device) < 0.5
    swapped &= torch.rand(len(anchors), 1, 1, 1, device=images.device) < swap_prob
    swapped = swapped.repeat_interleave(patch_size, dim=2).repeat_interleave(patch_size, dim=3)[..., :height, :width]
    return torch.cat((torch.where(swapped, partners, anchors), torch.where(swapped, anchors, partners)))


class IPS(MutualCSKD):
    """The loss of `MutualCSKD` on pairs that have swapped patches: one image of a pair then shows more of the class.

    From the paper: pairs of one class, cut into patches of m × m pixels, swap random ones with some probability, and
    learn from each other's predictions. Its coefficients were not available to us. The other choices are [ours]: half
    of the patches on average, both predictions as constant teachers, T² and the reductions of `MutualCSKD`. Each rank
    draws its own patches, so they depend on the number of ranks.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import IPS, Batch
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> pairs = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> IPS(patch_size=8).forward_loss(model, pairs)["loss"].backward()
    """

    name: Literal["ips"] = "ips"  # type: ignore[assignment]
    patch_size: int = Field(default=8, ge=1)
    """m, the side of a patch in pixels. [ours]"""
    swap_prob: Share = 0.5
    """Probability that a pair swaps patches. [ours]"""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch

        # Not compiled: inductor has its own random generator.
        images = torch.compiler.disable(swap_patches)(batch.images, self.patch_size, self.swap_prob)
        return super().forward_loss(module, Batch(images, batch.target, batch.index, batch.skipped))
