"""Mutual CS-KD: both images of a pair learn, each from its label and from the other's prediction.

[ours], after Yun et al., *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964, whose partner is forwarded for its prediction alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method
from cskd_hf.methods.cskd import class_wise_kd_loss

if TYPE_CHECKING:
    from torch import Tensor, nn


class MutualCSKD(Method):
    """L_CE over all 2B images + λ_cls · T² · L_cls with each half as the other's constant teacher.

    One forward over both halves, so no forward is wasted: a supervised image costs what it costs cross-entropy. It is
    another algorithm than the paper's: BatchNorm normalises the halves together and moves once a step, an epoch
    supervises each image as anchor and about once more as partner, and 2B labels are learnt from at a step.
    """

    views: ClassVar[Views] = "same_class"

    name: Literal["mutual_cskd"] = "mutual_cskd"
    temperature: float = Field(default=4.0, gt=0)
    """T of the distillation; the cross-entropy stays at 1. As in CS-KD."""
    distill_loss_weight: float = Field(default=1.0, ge=0)
    """λ_cls, as in CS-KD."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        output = module(batch.images)
        anchors, partners = output.chunk(2)
        task_loss = F.cross_entropy(output.float(), batch.target)
        # Row i of the swapped halves is the other image of row i's pair; the loss takes it as a constant.
        kd_loss = class_wise_kd_loss(output, torch.cat((partners, anchors)), self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": task_loss, "kd_loss": kd_loss}
