"""Cross-entropy, the baseline, with optional label smoothing, Mixup and CutMix.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016,
https://arxiv.org/abs/1512.00567 (label smoothing, section 7).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.task_loss import TaskLoss

if TYPE_CHECKING:
    from torch import Tensor, nn


class CrossEntropy(TaskLoss):
    """Cross-entropy against (1 − ε) · one-hot(y) + ε/K, averaged over the batch; of mixed images if α is above 0.

    Example:
        >>> import torch
        >>> from cskd_hf import Batch, CrossEntropy
        >>> batch = Batch(torch.zeros(2, 3, 1, 1), target=torch.tensor([0, 2]), index=torch.arange(2))
        >>> CrossEntropy(smoothing=0.1).forward_loss(torch.nn.Flatten(), batch)["loss"]  # uniform: ln 3
        tensor(1.0986)
    """

    views: ClassVar[Views] = "single"
    name: Literal["cross_entropy"] = "cross_entropy"

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        output, loss = self.mixed_task(module, batch.images, batch.target) or self.task(
            module, module(batch.images), batch.target
        )
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss}
