"""Virtual softmax: while training, one more class that the true one must beat.

Chen, Deng, Shen, *Virtual Class Enhanced Discriminative Embedding Learning*, NeurIPS 2018,
https://arxiv.org/abs/1811.12611.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Experiment, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


def virtual_logit(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """‖W_y‖ · ‖f‖: the logit of a class whose weight is W_y turned towards f, the largest that its length allows.

    Args:
        features: f, (B, D).
        weight: W, (K, D).
        target: y, (B,).

    Returns:
        (B, 1), in float32.
    """
    length = weight.float().norm(dim=-1)[target] * features.float().norm(dim=-1)
    return length[:, None]


class VirtualSoftmax(Method):
    """Cross-entropy over K + 1 logits, the last one virtual; no bias, and no virtual class in tests."""

    views: ClassVar[Views] = "single"

    name: Literal["virtual_softmax"] = "virtual_softmax"

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with its classifier's bias held at zero: its names, and so its export, stay timm's.

        Raises:
            UserError: the classifier is not one linear layer.
        """
        from torch import nn

        from cskd_hf.models.layers import linear_classifier

        classifier = linear_classifier(model, self.name)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)
            classifier.bias.requires_grad_(False)
        return model

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        model: Any = module
        classifier = model.get_classifier()
        features = model.forward_head(model.forward_features(batch.images), pre_logits=True)
        output = classifier(features)
        virtual = virtual_logit(features, classifier.weight, batch.target)
        loss = F.cross_entropy(torch.cat((output.float(), virtual), dim=-1), batch.target)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss}
