"""BYOT, "be your own teacher": the deepest classifier teaches classifiers on the earlier stages.

Zhang, Song, Gao, Chen, Bao, Ma, *Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation*, ICCV 2019, https://arxiv.org/abs/1905.08094.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method
from cskd_hf.methods.cskd import class_wise_kd_loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def hint_loss(maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """‖F − F_last‖² of feature maps (N, C, h, w): summed over C, h and w, averaged over the batch; F_last constant."""
    return (maps.float() - teacher_maps.detach().float()).square().flatten(1).sum(dim=1).mean()


class BYOT(Method):
    """L_CE(deepest) + w · Σ over three earlier stages of [(1 − α) · L_CE + α · T² · KL(deepest ‖ stage) + λ · hint].

    Works on timm models that have `feature_info` and `forward_intermediates`; see `Branched` for the branches, which
    are depthwise where the paper's bottlenecks are not [ours], and which are dropped from what is exported.
    """

    views: ClassVar[Views] = "single"

    name: Literal["byot"] = "byot"
    aux_loss_weight: float = Field(default=1.0, ge=0)
    """w, of all that the branches add. The paper's is 1."""
    distill_loss_weight: float = Field(default=0.1, ge=0, le=1)
    """α, the share of the deepest classifier's prediction in a branch's loss, the label's being 1 − α. [ours]"""
    temperature: float = Field(default=3.0, gt=0)
    """T of the distillation. [ours]"""
    hint_loss_weight: float = Field(default=1e-6, ge=0)
    """λ, of the squared distance between a branch's map and the deepest, in squared feature units. [ours]"""

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with three branches.

        Raises:
            UserError: timm gives no access to this model's stages.
        """
        from cskd_hf.models.branches import Branched

        return Branched(model, self.name)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output, last, adapted, outputs = module(batch.images)
        task_loss = F.cross_entropy(output.float(), batch.target)
        aux_task_loss = sum(F.cross_entropy(aux.float(), batch.target) for aux in outputs)
        kd_loss = sum(class_wise_kd_loss(aux, output, self.temperature) for aux in outputs)
        feature_loss = sum(hint_loss(maps, last) for maps in adapted)
        alpha = self.distill_loss_weight
        aux_loss = (1 - alpha) * aux_task_loss + alpha * kd_loss + self.hint_loss_weight * feature_loss
        loss = task_loss + self.aux_loss_weight * aux_loss
        terms = {"task_loss": task_loss, "aux_task_loss": aux_task_loss, "kd_loss": kd_loss, "hint_loss": feature_loss}
        return {"loss": loss, "output": output, "target": batch.target, **terms}

    def export(self, module: nn.Module) -> nn.Module:
        branched: Any = module
        return branched.model
