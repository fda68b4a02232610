"""DLB: the last mini-batch's predictions, made one update earlier, teach the same images under another augmentation.

Shen, Xu, Yang, Li, Guo, *Self-Distillation from the Last Mini-Batch for Consistency Regularization*, CVPR 2022,
https://arxiv.org/abs/2203.16172.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method, Temperature, Weight
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def last_batch_kd_loss(output: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """T² · KL(P ‖ softmax(z / T)), with P rescaled to sum to 1, which half precision does not preserve.

    Args:
        output: z, (B, K) logits of the last update's images.
        predictions: P, (B, K), made in the last update, at temperature T; a row of zeros counts as 0.

    Returns:
        Scalar, at least float32: summed over classes, averaged over all B rows.
    """
    import torch.nn.functional as F

    predictions = predictions / predictions.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    log_p = (at_least_float32(output) / temperature).log_softmax(dim=-1)
    return F.kl_div(log_p, predictions.to(log_p.dtype), reduction="batchmean") * temperature**2


class DLB(Method):
    """L_CE over the images of this update and of the last + α · T² · KL(the last update's prediction ‖ today's).

    Two separate forwards with gradient, in train mode, as in the authors' code,
    https://github.com/Meta-knowledge-Lab/DLB: B new images, then the last update's under another augmentation.
    Cross-entropy is averaged over all 2B images, KL over the last update's. An epoch supervises each image twice.

    The past predictions live in the memory of PS-KD, N · K half floats over all ranks, so that they survive a restart
    on any number of ranks. [ours]: each image comes again exactly B samples later. The code repeats whole batches; this
    differs only where an epoch ends in a short one. A run's first update repeats its own images, without a teacher.
    With gradient accumulation, an image that an earlier batch of the same update drew again has that batch's prediction
    as its teacher; without `data.sampling`, only where epochs meet.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import DLB, Batch, Experiment
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = DLB().build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> def update(rows):  # new rows, then the last ones
        ...     batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1] * 2), index=torch.tensor(rows))
        ...     return DLB().forward_loss(module, batch)["kd_loss"].item()
        >>> update([7, 2, 7, 2]), update([4, 5, 7, 2]) > 0
        (0.0, True)
    """

    views: ClassVar[Views] = "last_update"
    name: Literal["dlb"] = "dlb"
    temperature: Temperature = 3.0
    """T of the distillation; the cross-entropy stays at 1. [ours]: the authors' code has no default."""
    distill_loss_weight: Weight = 1.0
    """α. [ours]: the authors' code has no default."""

    @property
    def cost(self) -> float:
        return 2.0

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with a memory of its predictions for the training images."""
        from cskd_hf.models.memory import ModelWithMemory

        return ModelWithMemory(model, experiment.num_images, len(experiment.class_names), experiment.num_epochs)

    def forward_loss(self, module: Any, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        images, last_images = batch.images.chunk(2)
        index, last_index = batch.index.chunk(2)
        output, last_output = module(images), module(last_images)

        predictions, _ = module.memory.recall(last_index)
        kd_loss = last_batch_kd_loss(last_output, predictions, self.temperature)
        module.memory.remember(index, (at_least_float32(output.detach()) / self.temperature).softmax(dim=-1))

        output = torch.cat((output, last_output))
        task_loss = F.cross_entropy(at_least_float32(output), batch.target)
        loss = task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": task_loss, "kd_loss": kd_loss}

    def export(self, module: Any) -> nn.Module:
        return module.model
