"""CS-KD-E: CS-KD with each image's own un-augmented prediction as a second teacher.

Yun, Park, Lee, Shin, *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964, its table of calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method
from cskd_hf.methods.cskd import BatchNorm, class_wise_kd_loss, forward_views

if TYPE_CHECKING:
    from torch import Tensor, nn


class CSKDE(Method):
    """L_CE + λ_cls · T² · L_cls + λ_E · T² · KL(P(x un-augmented; θ̃, T) ‖ P(x augmented; θ, T)).

    Three separate forwards, all in train mode: x with gradient, then x′ and the un-augmented x without [ours: the paper
    does not say how the last is forwarded]. Un-augmented is the test transform: resize and centre crop [ours].
    """

    views: ClassVar[Views] = "same_class_plain"

    name: Literal["cskd_e"] = "cskd_e"
    temperature: float = Field(default=4.0, gt=0)
    """T of both distillations; the cross-entropy stays at 1. As in CS-KD."""
    distill_loss_weight: float = Field(default=1.0, ge=0)
    """λ_cls, as in CS-KD."""
    sample_loss_weight: float = Field(default=1.0, ge=0)
    """λ_E. [ours: the paper does not give it]"""
    batch_norm: BatchNorm = "separate"
    """As in CS-KD, the un-augmented x being one more teacher."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        target = batch.target.chunk(3)[0]
        output, partner_output, plain_output = forward_views(module, batch.images.chunk(3), self.batch_norm)

        task_loss = F.cross_entropy(output.float(), target)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        sample_kd_loss = class_wise_kd_loss(output, plain_output, self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss + self.sample_loss_weight * sample_kd_loss
        terms = {"task_loss": task_loss, "kd_loss": kd_loss, "sample_kd_loss": sample_kd_loss}
        return {"loss": loss, "output": output, "target": target, **terms}
