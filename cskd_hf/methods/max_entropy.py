"""Maximum entropy: cross-entropy that rewards an undecided prediction, also called the confidence penalty.

Dubey, Gupta, Raskar, Naik, *Maximum-Entropy Fine Grained Classification*, NeurIPS 2018,
https://arxiv.org/abs/1809.05934; Pereyra, Tucker, Chorowski, Kaiser, Hinton, *Regularizing Neural Networks by
Penalizing Confident Output Distributions*, ICLR 2017 workshop, https://arxiv.org/abs/1701.06548.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor, nn


def entropy(output: Tensor) -> Tensor:
    """H(softmax(output)) in nats, in float32: (B, K) logits → scalar, summed over classes, averaged over the batch."""
    log_p = output.float().log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


class MaxEntropy(Method):
    """L_CE(x, y) − γ · H(p(· given x))."""

    views: ClassVar[Views] = "single"

    name: Literal["max_entropy"] = "max_entropy"
    entropy_weight: float = Field(default=0.5, ge=0)
    """γ, per nat of entropy. [ours] the CS-KD paper does not give it; the mean confidences it prints fit γ ≥ 0.5."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        task_loss = F.cross_entropy(output.float(), batch.target)
        output_entropy = entropy(output)
        loss = task_loss - self.entropy_weight * output_entropy
        return {
            "loss": loss,
            "output": output,
            "target": batch.target,
            "task_loss": task_loss,
            "output_entropy": output_entropy,
        }
