"""Knowledge distillation from a trained teacher; alone, and with CS-KD.

Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, NIPS workshop 2014,
https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method
from cskd_hf.methods.cskd import BatchNorm, class_wise_kd_loss, forward_views

if TYPE_CHECKING:
    from torch import Tensor, nn


class Distillation(Method):
    """(1 − α) · L_CE + α · T² · KL(P(x; teacher, T) ‖ P(x; θ, T)).

    The teacher sees the very pixels the student sees, normalised by its own statistics; it is frozen, in eval mode, and
    no part of what is exported.
    """

    views: ClassVar[Views] = "single"

    name: Literal["distillation"] = "distillation"
    teacher: str
    """Trained weights of the same classes: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`. The CS-KD paper's
    is a DenseNet-121 trained with CS-KD."""
    temperature: float = Field(default=4.0, gt=0)
    """T of the distillation; the cross-entropy stays at 1. [ours]"""
    distill_loss_weight: float = Field(default=0.9, ge=0, le=1)
    """α, the teacher's share in the loss, the label's being 1 − α. [ours]"""

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with its teacher.

        Raises:
            UserError: there is no such teacher, or it knows other classes.
        """
        from cskd_hf.models.teacher import with_teacher

        return with_teacher(model, self.teacher, experiment.class_names, experiment.mean, experiment.std)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output = module(batch.images)
        return {"output": output, "target": batch.target, **self.terms(module, batch.images, output, batch.target)}

    def terms(self, module: Any, images: Tensor, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss of the images (N, C, H, W) with the student's logits (N, K), and its two terms."""
        import torch.nn.functional as F

        task_loss = F.cross_entropy(output.float(), target)
        kd_loss = class_wise_kd_loss(output, module.teach(images), self.temperature)
        loss = (1 - self.distill_loss_weight) * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "task_loss": task_loss, "kd_loss": kd_loss}

    def export(self, module: nn.Module) -> nn.Module:
        taught: Any = module
        return taught.model


class DistillationCSKD(Distillation):
    """Distillation's loss of x + λ_cls · T_cls² · L_cls(x, x′), with CS-KD's two separate forwards of the student."""

    views: ClassVar[Views] = "same_class"

    name: Literal["distillation_cskd"] = "distillation_cskd"  # type: ignore[assignment]
    class_wise_temperature: float = Field(default=4.0, gt=0)
    """T_cls, CS-KD's `temperature`."""
    class_wise_loss_weight: float = Field(default=1.0, ge=0)
    """λ_cls, CS-KD's `distill_loss_weight`."""
    batch_norm: BatchNorm = "separate"
    """Of the student, as in CS-KD; the teacher keeps its statistics."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, partner_images = batch.images.chunk(2)
        target = batch.target.chunk(2)[0]

        output, partner_output = forward_views(module, (images, partner_images), self.batch_norm)

        terms = self.terms(module, images, output, target)
        class_wise_loss = class_wise_kd_loss(output, partner_output, self.class_wise_temperature)
        loss = terms.pop("loss") + self.class_wise_loss_weight * class_wise_loss
        return {"loss": loss, "output": output, "target": target, **terms, "class_wise_loss": class_wise_loss}
