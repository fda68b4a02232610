"""Cross-entropy, the baseline, with optional label smoothing.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016,
https://arxiv.org/abs/1512.00567 (label smoothing, section 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrossEntropy(Method):
    """Cross-entropy against (1 − ε) · one-hot(y) + ε/K, averaged over the batch.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, CrossEntropy
        >>> batch = Batch(torch.zeros(2, 3, 1, 1), target=torch.tensor([0, 2]), index=torch.arange(2))
        >>> CrossEntropy(smoothing=0.1).forward_loss(torch.nn.Flatten(), batch)["loss"]  # uniform: ln 3
        tensor(1.0986)
    """

    views: ClassVar[Views] = "single"
    name: Literal["cross_entropy"] = "cross_entropy"
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε, the share of the target spread evenly over all K classes. 0 is plain cross-entropy; the paper uses 0.1."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        output = module(batch.images)
        loss = F.cross_entropy(output.float(), batch.target, label_smoothing=self.smoothing)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss}
