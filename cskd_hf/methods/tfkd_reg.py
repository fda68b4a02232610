"""Tf-KD_reg: distillation from a virtual teacher, certain of the true class and uniform over the others.

Yuan, Tay, Li, Wang, Feng, *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020,
https://arxiv.org/abs/1909.11723.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method, Share, Temperature
from cskd_hf.methods.cskd import class_wise_kd_loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def virtual_teacher(output: Tensor, target: Tensor, correct_probability: float) -> Tensor:
    """Log-probabilities (B, K), shaped like `output`: a for the true class, (1 − a) / (K − 1) for each other class."""
    others = (1 - correct_probability) / (output.shape[-1] - 1)
    logits = output.new_full(output.shape, math.log(others))
    return logits.scatter_(-1, target[:, None], math.log(correct_probability))


class TfKDReg(Method):
    """(1 − α) · L_CE + α · T² · KL(p_d at T ‖ P(· given x; θ, T)), where p_d is the virtual teacher.

    This is the paper's Eq. 9, with the student at T too, and with T² as in every distillation here [ours]; the authors'
    CIFAR-100 code has the student at T = 1. At T = 1 the loss is label smoothing up to a constant.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, TfKDReg
        >>> batch = Batch(torch.zeros(1, 3, 1, 1), target=torch.tensor([0]), index=torch.tensor([0]))
        >>> TfKDReg().forward_loss(torch.nn.Flatten(), batch)["loss"] > 0
        tensor(True)
    """

    views: ClassVar[Views] = "single"
    name: Literal["tfkd_reg"] = "tfkd_reg"
    correct_probability: float = Field(default=0.99, gt=0, lt=1)
    """a, the virtual teacher's probability of the true class. The authors' code uses 0.99; the paper asks for ≥ 0.9."""
    temperature: Temperature = 20.0
    """T of teacher and student; the cross-entropy stays at 1. [ours]: the authors' code uses 20 for the teacher."""
    distill_loss_weight: Share = 0.1
    """α, the weight of the virtual teacher; the label's is 1 − α. [ours]"""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        task_loss = F.cross_entropy(output.float(), batch.target)
        teacher = virtual_teacher(output.detach().float(), batch.target, self.correct_probability)
        kd_loss = class_wise_kd_loss(output, teacher, self.temperature)
        loss = (1 - self.distill_loss_weight) * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": task_loss, "kd_loss": kd_loss}
