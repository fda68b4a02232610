"""Knowledge distillation from a trained teacher; alone, or with CS-KD.

Hinton, Vinyals, Dean, *Distilling the Knowledge in a Neural Network*, NIPS workshop 2014,
https://arxiv.org/abs/1503.02531.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method, Share, Temperature, Weight
from cskd_hf.methods.cskd import BatchNorm, class_wise_kd_loss, forward_views
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


class Distillation(Method):
    """(1 − α) · L_CE + α · T² · KL(P(· given x; teacher, T) ‖ P(· given x; θ, T)).

    The teacher gets the student's images, normalised by its own statistics. It is frozen, in eval mode, and not part of
    the exported model.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, Distillation, Experiment
        >>> method = Distillation(teacher="runs/example", temperature=4.0)
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = method.build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> method.forward_loss(module, batch)["loss"].backward()
    """

    views: ClassVar[Views] = "single"
    name: Literal["distillation"] = "distillation"
    teacher: str
    """Trained weights for the same classes: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`. The CS-KD paper's
    teacher is a DenseNet-121 trained with CS-KD."""
    temperature: Temperature = 4.0
    """T of the distillation; the cross-entropy stays at 1. [ours]"""
    distill_loss_weight: Share = 0.9
    """α, the weight of the teacher's prediction; the label's is 1 − α. [ours]"""

    @property
    def cost(self) -> float:
        """With a teacher as large as the student."""
        return 4 / 3

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with its teacher.

        Raises:
            UserError: the teacher cannot be loaded, or was trained on other classes.
        """
        from cskd_hf.models.teacher import with_teacher

        return with_teacher(model, self.teacher, experiment.class_names, experiment.mean, experiment.std)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output = module(batch.images)
        return {"output": output, "target": batch.target, **self.terms(module, batch.images, output, batch.target)}

    def terms(self, module: Any, images: Tensor, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The loss and its two terms, from images (N, C, H, W) and the student's logits (N, K)."""
        import torch.nn.functional as F

        task_loss = F.cross_entropy(at_least_float32(output), target)
        kd_loss = class_wise_kd_loss(output, module.teacher_output(images), self.temperature)
        loss = (1 - self.distill_loss_weight) * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "task_loss": task_loss, "kd_loss": kd_loss}

    def export(self, module: Any) -> nn.Module:
        return module.model


class DistillationCSKD(Distillation):
    """The loss of `Distillation` on x + λ_cls · T_cls² · L_cls(x, x′), with CS-KD's two forwards of the student.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, DistillationCSKD, Experiment
        >>> method = DistillationCSKD(teacher="runs/example", class_wise_loss_weight=3.0)
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = method.build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> pairs = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> method.forward_loss(module, pairs)["loss"].backward()
    """

    views: ClassVar[Views] = "same_class"
    name: Literal["distillation_cskd"] = "distillation_cskd"  # type: ignore[assignment]
    class_wise_temperature: Temperature = 4.0
    """T_cls, CS-KD's `temperature`."""
    class_wise_loss_weight: Weight = 1.0
    """λ_cls, CS-KD's `distill_loss_weight`."""
    batch_norm: BatchNorm = "separate"
    """Of the student, as in CS-KD; the teacher's statistics are frozen."""

    @property
    def cost(self) -> float:
        """With a teacher as large as the student."""
        return super().cost + (1 if self.batch_norm == "joint" else 1 / 3)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, partner_images = batch.images.chunk(2)
        target = batch.target.chunk(2)[0]

        output, partner_output = forward_views(module, (images, partner_images), self.batch_norm)

        terms = self.terms(module, images, output, target)
        class_wise_loss = class_wise_kd_loss(output, partner_output, self.class_wise_temperature)
        loss = terms.pop("loss") + self.class_wise_loss_weight * class_wise_loss
        return {"loss": loss, "output": output, "target": target, **terms, "class_wise_loss": class_wise_loss}
