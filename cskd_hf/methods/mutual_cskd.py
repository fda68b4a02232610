"""Mutual CS-KD: both images of a pair learn, each from its label and from the other's prediction.

[ours], after Yun et al., *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964, where the partner is forwarded only as a teacher. The closest published relative is
IPS (`ips`), which swaps patches within each pair first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Temperature, Weight
from cskd_hf.methods.cskd import class_wise_kd_loss
from cskd_hf.methods.task_loss import TaskLoss

if TYPE_CHECKING:
    from torch import Tensor, nn


class MutualCSKD(TaskLoss):
    """L_CE over all 2B images + λ_cls · T² · L_cls with each half as the other's constant teacher.

    One forward over both halves, so a supervised image costs what it costs under cross-entropy. This is not the paper's
    algorithm: BatchNorm normalises the halves together and updates once a step, an epoch supervises each image once as
    anchor and about once more as partner, and a step learns from 2B labels. With Mixup or CutMix, L_CE is over the
    mixed 2B images, in a forward of its own, and L_cls over the unmixed.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, MutualCSKD
        >>> pair = Batch(torch.zeros(2, 2, 1, 1), target=torch.tensor([1, 1]), index=torch.arange(2))
        >>> MutualCSKD().forward_loss(torch.nn.Flatten(), pair)["output"].shape  # both are supervised
        torch.Size([2, 2])
    """

    views: ClassVar[Views] = "same_class"
    name: Literal["mutual_cskd"] = "mutual_cskd"
    temperature: Temperature = 4.0
    """T of the distillation, as in CS-KD; the cross-entropy stays at 1."""
    distill_loss_weight: Weight = 1.0
    """λ_cls, as in CS-KD."""

    @property
    def cost(self) -> float:
        return 4.0 if self.mixes else 2.0

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch

        mixed_task = self.mixed_task(module, batch.images, batch.target)
        output = module(batch.images)
        anchors, partners = output.chunk(2)
        task_output, task_loss = mixed_task or self.task(module, output, batch.target)
        kd_loss = class_wise_kd_loss(output, torch.cat((partners, anchors)), self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": task_output, "target": batch.target, "task_loss": task_loss, "kd_loss": kd_loss}
