"""CS-KD: class-wise self-knowledge distillation.

Yun, Park, Lee, Shin, *Regularizing Class-wise Predictions via Self-knowledge Distillation*, CVPR 2020,
https://arxiv.org/abs/2003.13964.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from cskd_hf.batch import NUM_VIEWS, Batch, Views
from cskd_hf.methods.base import Temperature, Weight
from cskd_hf.methods.task_loss import TaskLoss
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def class_wise_kd_loss(output: Tensor, teacher_output: Tensor, temperature: float) -> Tensor:
    """T² · KL(P(· given x′; θ̃, T) ‖ P(· given x; θ, T)): the paper's L_cls, times T².

    Args:
        output: (B, K) logits of x.
        teacher_output: (B, K) logits of x′, another image of x's class; no gradient flows through them.
        temperature: T > 0, divides both.

    Returns:
        Scalar, at least float32: summed over classes, averaged over the batch (`batchmean`).

    Raises:
        ValueError: the shapes differ, which would broadcast, or are not (B, K), or the temperature is not above 0.

    Example:
        >>> import torch
        >>> from cskd_hf import class_wise_kd_loss
        >>> uniform, certain = torch.tensor([[0.0, 0.0]]), torch.tensor([[20.0, 0.0]])
        >>> class_wise_kd_loss(uniform, certain, temperature=1.0)  # KL(certain ‖ uniform) = ln 2
        tensor(0.6931)
    """
    import torch.nn.functional as F

    if output.ndim != 2 or output.shape != teacher_output.shape:
        shapes = f"{tuple(output.shape)} and {tuple(teacher_output.shape)}"
        raise ValueError(f"logits {shapes}: needs the same shape (B, K) for x and x′")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; needs a finite number above 0")
    log_p = F.log_softmax(at_least_float32(output) / temperature, dim=-1)
    q = F.softmax(at_least_float32(teacher_output.detach()) / temperature, dim=-1)
    return F.kl_div(log_p, q, reduction="batchmean") * temperature**2


BatchNorm = Literal["separate", "joint", "anchors_only"]


def forward_views(module: nn.Module, views: Sequence[Tensor], batch_norm: BatchNorm) -> tuple[Tensor, ...]:
    """Forward a batch's views in train mode: the first one learns, the others are teachers.

    Args:
        views: x, x′ and any further teachers, (B, C, H, W) each.
        batch_norm: see `CSKD.batch_norm`.

    Returns:
        (B, K) logits of each view. Only `joint` builds a graph for the teachers; the loss detaches them anyway.
    """
    from contextlib import nullcontext

    import torch

    from cskd_hf.models.layers import freeze_running_statistics

    if batch_norm == "joint":
        return module(torch.cat(list(views))).chunk(len(views))
    output = module(views[0])
    statistics = freeze_running_statistics(module) if batch_norm == "anchors_only" else nullcontext()
    with torch.no_grad(), statistics:  # θ̃: the current weights, as a constant
        return output, *(module(images) for images in views[1:])


class CSKD(TaskLoss):
    """L_CE(x, y; θ) + λ_cls · T² · L_cls(x, x′; θ, T), where x′ is another training image of x's class.

    Two separate forwards, both in train mode: x with gradient, then x′ without. x′ gets no cross-entropy. With Mixup or
    CutMix, L_CE is over the mixed x, in a forward of its own before them, and L_cls over the unmixed pairs [ours: the
    paper combines the two without saying how].

    Example:
        >>> import timm, torch
        >>> from cskd_hf import CSKD, Batch, Objective
        >>> objective = Objective(CSKD(temperature=4.0), timm.create_model("test_resnet", num_classes=2))
        >>> target = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])  # 4 anchors, then their 4 partners
        >>> objective(Batch(torch.rand(8, 3, 32, 32), target, index=torch.arange(8)))["loss"].backward()
    """

    views: ClassVar[Views] = "same_class"
    name: Literal["cskd"] = "cskd"
    temperature: Temperature = 4.0
    """T of the distillation; the cross-entropy stays at 1. The paper tries 1 and 4; its code defaults to 4."""
    distill_loss_weight: Weight = 1.0
    """λ_cls. The paper tries 1, 2, 3 and 4; its code uses 1 for CIFAR-100 and 3 for CUB-200."""

    batch_norm: BatchNorm = "separate"
    """`separate` (the paper's code): x and x′ are normalised separately, and both update the running statistics.
    `anchors_only`: the same, but only x updates them. `joint`: one forward of both, normalised together, with x′ still
    a constant teacher: a different algorithm, with 2B images in the graph. Equivalent without BatchNorm. Mixed images
    always get their own forward."""

    @property
    def cost(self) -> float:
        teachers = NUM_VIEWS[self.views] - 1
        return 1 + teachers * (1 if self.batch_norm == "joint" else 1 / 3) + self.mixes

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        views, target = batch.images.chunk(2), batch.target.chunk(2)[0]
        mixed_task = self.mixed_task(module, views[0], target)
        output, partner_output = forward_views(module, views, self.batch_norm)

        task_output, task_loss = mixed_task or self.task(module, output, target)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": task_output, "target": target, "task_loss": task_loss, "kd_loss": kd_loss}
