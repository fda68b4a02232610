"""CS-KD: class-wise self-knowledge distillation.

Yun, Park, Lee, Shin, *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.methods.base import Batch, Method, Views

if TYPE_CHECKING:
    from torch import Tensor, nn


def class_wise_kd_loss(output: Tensor, teacher_output: Tensor, temperature: float) -> Tensor:
    """T² · KL(P(· given x′; θ̃, T) ‖ P(· given x; θ, T)), the paper's L_cls with the T² it is weighted by.

    Args:
        output: (B, K) logits of x; the gradient flows here.
        teacher_output: (B, K) logits of x′, another image of each x's class; taken as constant.
        temperature: T > 0, divides both.

    Returns:
        Scalar in float32: summed over classes, averaged over the batch (`batchmean`).
    """
    import torch.nn.functional as F

    log_p = F.log_softmax(output.float() / temperature, dim=-1)
    q = F.softmax(teacher_output.detach().float() / temperature, dim=-1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


class CSKD(Method):
    """L_CE(x, y; θ) + λ_cls · T² · L_cls(x, x′; θ, T), where x′ is another training image of x's class.

    Two separate forwards, both in train mode, x with gradient and then x′ without: BatchNorm normalises the halves
    apart and its running statistics move twice a step. One concatenated forward would be another algorithm.
    x′ gets no cross-entropy.
    """

    views: ClassVar[Views] = "same_class"

    name: Literal["cskd"] = "cskd"
    temperature: float = Field(default=4.0, gt=0)
    """T of the distillation; the cross-entropy stays at 1. The paper tries 1 and 4, its code defaults to 4."""
    distill_loss_weight: float = Field(default=1.0, ge=0)
    """λ_cls. The paper tries 1, 2, 3 and 4; its code has 1 for CIFAR-100 and 3 for CUB-200."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        images, partner_images = batch.images.chunk(2)
        target = batch.target.chunk(2)[0]

        output = module(images)
        with torch.no_grad():  # θ̃: today's weights, as a constant
            partner_output = module(partner_images)

        task_loss = F.cross_entropy(output.float(), target)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": target, "task_loss": task_loss, "kd_loss": kd_loss}
