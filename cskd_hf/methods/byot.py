"""BYOT, "be your own teacher": the deepest classifier teaches classifiers on the earlier stages.

Zhang, Song, Gao, Chen, Bao, Ma, *Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation*, ICCV 2019, https://arxiv.org/abs/1905.08094; extended in Zhang, Bao, Ma, *Self-Distillation: Towards
Efficient and Compact Neural Networks*, TPAMI 2022, https://doi.org/10.1109/TPAMI.2021.3067100, whose code is followed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method, Share, Temperature, Weight
from cskd_hf.methods.cskd import class_wise_kd_loss
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def hint_loss(features: Sequence[Tensor], teacher_features: Tensor, index: Tensor) -> Tensor:
    """Σ over branches of ‖F − F_last‖, scalar: the Euclidean norm over features and batch, as in the authors' code.

    Args:
        features: F of each branch, (B, D).
        teacher_features: F_last, (B, D); no gradient flows through them.
        index: (B,), the batch's; the norm is over the images of all ranks, and rows with index -1 do not count.
    """
    import torch

    from cskd_hf.models.collectives import global_sum

    teacher_features = at_least_float32(teacher_features.detach())
    squares = [(at_least_float32(branch) - teacher_features).square().sum(dim=1) for branch in features]
    # Clamped: the gradient of the root is infinite at 0.
    return global_sum(torch.stack(squares, dim=1), index).clamp(min=1e-12).sqrt().sum()


class BYOT(Method):
    """L_CE(deepest) + w · [Σ over three earlier stages of ((1 − α) · L_CE + α · KL(deepest ‖ stage, at T)) + λ · hint].

    Coefficients and reductions are those of the authors' code for the journal paper: no T², and a hint that compares
    pooled features through a linear layer, but not those of the shallowest branch. (A comment in their code says so;
    the code skips the deepest of the three.) The branches are separable convolutions as in that code, without its
    attention, and with the widths of `models/branches.py` [ours]. They are dropped from the exported model.

    Needs a timm model with `feature_info` and `forward_intermediates`.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import BYOT, Batch, Experiment
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = BYOT().build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> batch = Batch(torch.rand(4, 3, 64, 64), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> BYOT().forward_loss(module, batch)["loss"].backward()
    """

    views: ClassVar[Views] = "single"
    name: Literal["byot"] = "byot"
    aux_loss_weight: Weight = 1.0
    """w, of all branch losses together. The paper's is 1."""
    distill_loss_weight: Share = 0.3
    """α, the weight of the deepest classifier's prediction in a branch's loss; the label's is 1 − α. The authors' code
    uses 0.3."""
    temperature: Temperature = 3.0
    """T of the distillation. The authors' code uses 3."""
    hint_loss_weight: Weight = 0.03
    """λ, of the distance between a branch's pooled features and the deepest. The authors' code uses 0.03."""

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with three branches.

        Raises:
            UserError: the model gives no access to its stages, or has fewer than four.
        """
        from cskd_hf.models.branches import ModelWithBranches

        return ModelWithBranches(model, self.name)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output, last, adapted, outputs = module(batch.images)
        task_loss = F.cross_entropy(at_least_float32(output), batch.target)
        aux_task_loss = sum(F.cross_entropy(at_least_float32(aux), batch.target) for aux in outputs)
        kd_loss = sum(class_wise_kd_loss(aux, output, self.temperature) for aux in outputs) / self.temperature**2
        feature_loss = hint_loss(adapted, last, batch.index)
        alpha = self.distill_loss_weight
        aux_loss = (1 - alpha) * aux_task_loss + alpha * kd_loss + self.hint_loss_weight * feature_loss
        loss = task_loss + self.aux_loss_weight * aux_loss
        terms = {"task_loss": task_loss, "aux_task_loss": aux_task_loss, "kd_loss": kd_loss, "hint_loss": feature_loss}
        return {"loss": loss, "output": output, "target": batch.target, **terms}

    def export(self, module: Any) -> nn.Module:
        return module.model
