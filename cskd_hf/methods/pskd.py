"""PS-KD: progressive self-knowledge distillation, from each image's prediction of the epoch before.

Kim, Ji, Yoon, Hwang, *Self-Knowledge Distillation with Progressive Refinement of Targets*, ICCV 2021,
https://arxiv.org/abs/2006.12000.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


def refined_target(target: Tensor, predictions: Tensor, share: Tensor) -> Tensor:
    """(1 − α) · one-hot(y) + α · P, with P scaled back to the sum that half precision took from it.

    Args:
        target: y, (B,).
        predictions: P, (B, K), in float32.
        share: α, (B,).
    """
    import torch.nn.functional as F

    one_hot = F.one_hot(target, predictions.shape[-1]).to(predictions)
    predictions = predictions / predictions.sum(dim=-1, keepdim=True).clamp(min=1e-6)
    return one_hot.lerp(predictions, share[:, None])


class PSKD(Method):
    """Cross-entropy against (1 − α_t) · y + α_t · P_{t−1}(x), where α_t = α_T · t / T grows with the epochs.

    P_{t−1}(x) is the network's prediction for the image when it was last trained on, under that epoch's augmentation;
    t counts an image's own visits, which is the epoch from 1 on unless `data.drop_last` leaves it out of some. The
    first epoch has no such prediction and learns from labels alone. The memory takes N · K half floats over all
    processes: 2.6 GB for ImageNet-1k.
    """

    views: ClassVar[Views] = "single"

    name: Literal["pskd"] = "pskd"
    last_alpha: float = Field(default=0.8, ge=0, le=1)
    """α_T, the past prediction's share in the last epoch's target. [ours]"""

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with a memory of the training images."""
        from cskd_hf.models.memory import Remembering

        return Remembering(model, experiment.num_images, len(experiment.class_names), experiment.num_epochs)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        remembering: Any = module
        output = module(batch.images)
        predictions, visits = remembering.memory.recall(batch.index)
        share = (self.last_alpha * (visits + 1) / remembering.num_epochs).clamp(max=self.last_alpha) * (visits > 0)
        loss = F.cross_entropy(output.float(), refined_target(batch.target, predictions, share))
        remembering.memory.remember(batch.index, output.detach().float().softmax(dim=-1))
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss, "alpha": share.mean()}

    def export(self, module: nn.Module) -> nn.Module:
        remembering: Any = module
        return remembering.model
