"""DDGSD: data-distortion guided self-distillation, between two augmentations of one image.

Xu, Liu, *Data-Distortion Guided Self-Distillation for Deep Neural Networks*, AAAI 2019,
https://doi.org/10.1609/aaai.v33i01.33015565.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method
from cskd_hf.methods.cskd import class_wise_kd_loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def mean_discrepancy(features: Tensor, other_features: Tensor, index: Tensor) -> Tensor:
    """‖mean f − mean f′‖² of two batches (B, D), their squared maximum mean discrepancy under a linear kernel.

    The means go over every process's images, so that a batch counts as one however it is dealt out.
    """
    from cskd_hf.models.collectives import global_mean

    return global_mean(features.float() - other_features.float(), index).square().sum()


class DDGSD(Method):
    """L_CE over both augmentations + λ · T² · KL both ways + μ · ‖mean f − mean f′‖².

    One forward over both halves, [first | second] along the batch. Cross-entropy and KL are averaged over all 2B images
    [ours: the CS-KD paper, which compares with it, gives the definition only].
    """

    views: ClassVar[Views] = "same_image"

    name: Literal["ddgsd"] = "ddgsd"
    temperature: float = Field(default=3.0, gt=0)
    """T of the distillation. [ours]"""
    distill_loss_weight: float = Field(default=1.0, ge=0)
    """λ, of the KL between the two predictions, each the other's constant teacher. [ours]"""
    feature_loss_weight: float = Field(default=5e-4, ge=0)
    """μ, of the squared distance between the mean pooled features, in squared feature units. [ours]"""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        model: Any = module
        maps = model.forward_features(batch.images)
        features, output = model.forward_head(maps, pre_logits=True), model.forward_head(maps)
        first, second = output.chunk(2)
        task_loss = F.cross_entropy(output.float(), batch.target)
        kd_loss = class_wise_kd_loss(output, torch.cat((second, first)), self.temperature)
        features, other_features = features.chunk(2)
        feature_loss = mean_discrepancy(features, other_features, batch.index.chunk(2)[0])
        loss = task_loss + self.distill_loss_weight * kd_loss + self.feature_loss_weight * feature_loss
        return {
            "loss": loss,
            "output": output,
            "target": batch.target,
            "task_loss": task_loss,
            "kd_loss": kd_loss,
            "feature_loss": feature_loss,
        }
