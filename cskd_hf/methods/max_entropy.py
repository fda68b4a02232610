"""Maximum entropy, or confidence penalty: cross-entropy that rewards uncertain predictions.

Dubey, Gupta, Raskar, Naik, *Maximum-Entropy Fine Grained Classification*, NeurIPS 2018,
https://arxiv.org/abs/1809.05934; Pereyra, Tucker, Chorowski, Kaiser, Hinton, *Regularizing Neural Networks by
Penalizing Confident Output Distributions*, ICLR 2017 workshop, https://arxiv.org/abs/1701.06548.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method, Weight
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def entropy(output: Tensor) -> Tensor:
    """H(softmax(output)) in nats: logits (B, K) → scalar, summed over classes, averaged over the batch."""
    log_p = at_least_float32(output).log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1).mean()


class MaxEntropy(Method):
    """L_CE(x, y) − γ · H(P(· given x)).

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, MaxEntropy
        >>> batch = Batch(torch.zeros(2, 3, 1, 1), target=torch.tensor([0, 2]), index=torch.arange(2))
        >>> MaxEntropy(entropy_weight=0.5).forward_loss(torch.nn.Flatten(), batch)["loss"]  # ln 3 − 0.5 · ln 3
        tensor(0.5493)
    """

    views: ClassVar[Views] = "single"
    name: Literal["max_entropy"] = "max_entropy"
    entropy_weight: Weight = 0.5
    """γ, per nat of entropy. [ours]: the CS-KD paper does not give it; the mean confidences it prints fit γ ≥ 0.5."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        task_loss, output_entropy = F.cross_entropy(at_least_float32(output), batch.target), entropy(output)
        loss = task_loss - self.entropy_weight * output_entropy
        terms = {"task_loss": task_loss, "output_entropy": output_entropy}
        return {"loss": loss, "output": output, "target": batch.target, **terms}
