"""BYOT, "be your own teacher": the deepest classifier teaches classifiers on the earlier stages.

Zhang, Song, Gao, Chen, Bao, Ma, *Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation*, ICCV 2019, https://arxiv.org/abs/1905.08094.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method, Share, Temperature, Weight
from cskd_hf.methods.cskd import class_wise_kd_loss

if TYPE_CHECKING:
    from torch import Tensor, nn


def hint_loss(maps: Tensor, teacher_maps: Tensor) -> Tensor:
    """‖F − F_last‖² of feature maps (N, C, h, w): summed over C, h, w, averaged over the batch; F_last is detached."""
    return (maps.float() - teacher_maps.detach().float()).square().flatten(1).sum(dim=1).mean()


class BYOT(Method):
    """L_CE(deepest) + w · Σ over three earlier stages of [(1 − α) · L_CE + α · T² · KL(deepest ‖ stage) + λ · hint].

    Needs a timm model with `feature_info` and `forward_intermediates`. The branches are depthwise-separable
    convolutions where the paper has bottlenecks [ours]; they are dropped from the exported model.

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
    distill_loss_weight: Share = 0.1
    """α, the weight of the deepest classifier's prediction in a branch's loss; the label's is 1 − α. [ours]"""
    temperature: Temperature = 3.0
    """T of the distillation. [ours]"""
    hint_loss_weight: Weight = 1e-6
    """λ, of the squared distance between a branch's feature map and the deepest. [ours]"""

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
        task_loss = F.cross_entropy(output.float(), batch.target)
        aux_task_loss = sum(F.cross_entropy(aux.float(), batch.target) for aux in outputs)
        kd_loss = sum(class_wise_kd_loss(aux, output, self.temperature) for aux in outputs)
        feature_loss = sum(hint_loss(maps, last) for maps in adapted)
        alpha = self.distill_loss_weight
        aux_loss = (1 - alpha) * aux_task_loss + alpha * kd_loss + self.hint_loss_weight * feature_loss
        loss = task_loss + self.aux_loss_weight * aux_loss
        terms = {"task_loss": task_loss, "aux_task_loss": aux_task_loss, "kd_loss": kd_loss, "hint_loss": feature_loss}
        return {"loss": loss, "output": output, "target": batch.target, **terms}

    def export(self, module: Any) -> nn.Module:
        return module.model
