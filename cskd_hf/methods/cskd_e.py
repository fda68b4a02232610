"""CS-KD-E: CS-KD with each image's own un-augmented prediction as a second teacher.

Yun, Park, Lee, Shin, *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964, in its calibration table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Weight
from cskd_hf.methods.cskd import CSKD, class_wise_kd_loss, forward_views

if TYPE_CHECKING:
    from torch import Tensor, nn


class CSKDE(CSKD):
    """L_CE + λ_cls · T² · L_cls + λ_E · T² · KL(P(· given x un-augmented; θ̃, T) ‖ P(· given x augmented; θ, T)).

    Three separate forwards, all in train mode: x with gradient, then x′ and the un-augmented x without [ours: the paper
    does not say how the last is forwarded]. Un-augmented means the test transform: resize and centre crop [ours].

    Example:
        >>> import torch
        >>> from cskd_hf import CSKDE, Batch
        >>> x, partner, plain = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
        >>> batch = Batch(torch.cat((x, partner, plain)), target=torch.zeros(3).long(), index=torch.arange(3))
        >>> CSKDE().forward_loss(torch.nn.Flatten(), batch)["loss"]  # all predictions agree: ln 2
        tensor(0.6931)
    """

    views: ClassVar[Views] = "same_class_plain"
    name: Literal["cskd_e"] = "cskd_e"  # type: ignore[assignment]
    sample_loss_weight: Weight = 1.0
    """λ_E. [ours]: the paper does not give it."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        views, target = batch.images.chunk(3), batch.target.chunk(3)[0]
        mixed_task = self.mixed_task(module, views[0], target)
        output, partner_output, plain_output = forward_views(module, views, self.batch_norm)

        task_output, task_loss = mixed_task or self.task(module, output, target)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        sample_kd_loss = class_wise_kd_loss(output, plain_output, self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss + self.sample_loss_weight * sample_kd_loss
        terms = {"task_loss": task_loss, "kd_loss": kd_loss, "sample_kd_loss": sample_kd_loss}
        return {"loss": loss, "output": task_output, "target": target, **terms}
