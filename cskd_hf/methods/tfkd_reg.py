"""Tf-KD_reg: distillation from a virtual teacher, certain of the true class and uniform over the others.

Yuan, Tay, Li, Wang, Feng, *Revisiting Knowledge Distillation via Label Smoothing Regularization*, CVPR 2020,
https://arxiv.org/abs/1909.11723.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method, Share, Temperature
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def virtual_teacher(logits: Tensor, target: Tensor, correct_probability: float, temperature: float) -> Tensor:
    """softmax(p / T), (B, K) like the logits, where p is a for the true class and (1 − a) / (K − 1) for each other."""
    p = logits.new_full(logits.shape, (1 - correct_probability) / (logits.shape[-1] - 1))
    return (p.scatter_(1, target[:, None], correct_probability) / temperature).softmax(dim=-1)


class TfKDReg(Method):
    """(1 − α) · L_CE + α · KL(p_d ‖ P(· given x; θ)), where p_d is the virtual teacher.

    This is the objective of the authors' code, https://github.com/yuanli2333/Teacher-free-Knowledge-Distillation: T
    divides the teacher's probabilities, not their logarithms; the student is at T = 1, and there is no T². The code
    averages the KL over batch and classes and multiplies it by 100 on CIFAR-100, which is the sum over classes here.
    The paper's Eq. 9 divides the student's logits by T, too.

    The loss is label smoothing up to a constant, with ε = α · K · p_d(other class): about α for the default a and T.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, TfKDReg
        >>> batch = Batch(torch.zeros(1, 3, 1, 1), target=torch.tensor([0]), index=torch.tensor([0]))
        >>> TfKDReg().forward_loss(torch.nn.Flatten(), batch)["loss"]  # 0.9 · ln 3 + 0.1 · KL, almost 0
        tensor(0.9888)
    """

    views: ClassVar[Views] = "single"
    name: Literal["tfkd_reg"] = "tfkd_reg"
    correct_probability: float = Field(default=0.99, gt=0, lt=1)
    """a, the virtual teacher's probability of the true class. The authors' code uses 0.99; the paper asks for ≥ 0.9."""
    temperature: Temperature = 20.0
    """T of the virtual teacher. The authors' code uses 20 on CIFAR-100."""
    distill_loss_weight: Share = 0.1
    """α, the weight of the virtual teacher; the label's is 1 − α. The authors' code uses 0.1 on CIFAR-100."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        logits = at_least_float32(output)
        task_loss = F.cross_entropy(logits, batch.target)
        teacher = virtual_teacher(logits, batch.target, self.correct_probability, self.temperature)
        kd_loss = F.kl_div(logits.log_softmax(dim=-1), teacher, reduction="batchmean")
        loss = (1 - self.distill_loss_weight) * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": task_loss, "kd_loss": kd_loss}
