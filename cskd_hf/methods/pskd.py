"""PS-KD: progressive self-knowledge distillation from each image's prediction in the previous epoch.

Kim, Ji, Yoon, Hwang, *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021,
https://arxiv.org/abs/2006.12000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method, Share
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def refined_target(target: Tensor, predictions: Tensor, alpha: Tensor) -> Tensor:
    """(1 − α) · one-hot(y) + α · P, with P rescaled to sum to 1, which half precision does not preserve.

    Args:
        target: y, (B,).
        predictions: P, (B, K).
        alpha: α, (B,).
    """
    import torch.nn.functional as F

    one_hot = F.one_hot(target, predictions.shape[-1]).to(predictions)
    predictions = predictions / predictions.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return one_hot.lerp(predictions, alpha[:, None])


class PSKD(Method):
    """Cross-entropy against (1 − α_t) · y + α_t · P_{t−1}(x), where α_t = α_T · t / T grows over the epochs.

    P_{t−1}(x) is the network's prediction when it last trained on the image, under that epoch's augmentation. t counts
    the image's own visits: the epoch from 1, unless `data.drop_last` skipped the image in some, or it also replaced an
    unreadable one. The first epoch learns from labels alone. The memory takes N · K half floats over all ranks: 2.6 GB
    for ImageNet-1k.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import PSKD, Batch, Experiment
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = PSKD().build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> [round(PSKD().forward_loss(module, batch)["alpha"].item(), 2) for epoch in range(3)]
        [0.0, 0.16, 0.24]
    """

    views: ClassVar[Views] = "single"
    name: Literal["pskd"] = "pskd"
    last_alpha: Share = 0.8
    """α_T, the weight of the past prediction in the last epoch's target. The paper's code uses 0.8."""

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with a memory of its predictions for the training images."""
        from cskd_hf.models.memory import ModelWithMemory

        return ModelWithMemory(model, experiment.num_images, len(experiment.class_names), experiment.num_epochs)

    def forward_loss(self, module: Any, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        predictions, visits = module.memory.recall(batch.index)
        alpha = (self.last_alpha * (visits + 1) / module.num_epochs).clamp(max=self.last_alpha) * (visits > 0)
        logits = at_least_float32(output)
        loss = F.cross_entropy(logits, refined_target(batch.target, predictions, alpha).to(logits))
        module.memory.remember(batch.index, logits.detach().softmax(dim=-1))
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss, "alpha": alpha.mean()}

    def export(self, module: Any) -> nn.Module:
        return module.model
