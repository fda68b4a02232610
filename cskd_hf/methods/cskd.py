"""CS-KD: class-wise self-knowledge distillation.

Yun, Park, Lee, Shin, *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method

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


BatchNorm = Literal["separate", "joint", "anchors_only"]


def forward_views(module: nn.Module, views: Sequence[Tensor], batch_norm: BatchNorm) -> tuple[Tensor, ...]:
    """A network's logits for the views of a batch, in train mode: the first learns, the others teach.

    Args:
        views: (B, C, H, W) each: x, x′, and what else there is. Under no gradient but the first, as far as `batch_norm`
            lets it; the loss takes the others as constants.
        batch_norm: see `CSKD.batch_norm`.

    Returns:
        (B, K) logits of each view.
    """
    from contextlib import nullcontext

    import torch

    from cskd_hf.models.layers import running_statistics_kept

    if batch_norm == "joint":
        return module(torch.cat(list(views))).chunk(len(views))
    output = module(views[0])
    kept = running_statistics_kept(module) if batch_norm == "anchors_only" else nullcontext()
    with torch.no_grad(), kept:  # θ̃: today's weights, as a constant
        return output, *(module(images) for images in views[1:])


class CSKD(Method):
    """L_CE(x, y; θ) + λ_cls · T² · L_cls(x, x′; θ, T), where x′ is another training image of x's class.

    Two separate forwards, both in train mode, x with gradient and then x′ without; x′ gets no cross-entropy.
    """

    views: ClassVar[Views] = "same_class"

    name: Literal["cskd"] = "cskd"
    temperature: float = Field(default=4.0, gt=0)
    """T of the distillation; the cross-entropy stays at 1. The paper tries 1 and 4, its code defaults to 4."""
    distill_loss_weight: float = Field(default=1.0, ge=0)
    """λ_cls. The paper tries 1, 2, 3 and 4; its code has 1 for CIFAR-100 and 3 for CUB-200."""

    batch_norm: BatchNorm = "separate"
    """`separate` (the paper's code): x and x′ are normalised apart, and the running statistics move twice a step.
    `anchors_only`: the same, but they move with x alone. `joint`: one forward of both, normalised together, x′ still a
    constant teacher: another algorithm, with 2B images in the graph. The same for networks without BatchNorm."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        target = batch.target.chunk(2)[0]
        output, partner_output = forward_views(module, batch.images.chunk(2), self.batch_norm)

        task_loss = F.cross_entropy(output.float(), target)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": target, "task_loss": task_loss, "kd_loss": kd_loss}
