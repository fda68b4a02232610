"""Virtual softmax: during training, one more class competes with the true one.

Chen, Deng, Shen, *Virtual Class Enhanced Discriminative Embedding Learning*, NeurIPS 2018,
https://arxiv.org/abs/1811.12611.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.errors import UserError
from cskd_hf.methods.base import Experiment, Method
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def virtual_logit(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """‖W_y‖ · ‖f‖: the logit of a class whose weight is W_y rotated onto f, the largest possible at that norm.

    Args:
        features: f, (B, D).
        weight: W, (K, D).
        target: y, (B,).

    Returns:
        (B, 1), at least float32.
    """
    return (at_least_float32(weight).norm(dim=-1)[target] * at_least_float32(features).norm(dim=-1))[:, None]


class VirtualSoftmax(Method):
    """Cross-entropy over K + 1 logits, the last one virtual; no bias, and no virtual class at test time.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, Experiment, VirtualSoftmax
        >>> experiment = Experiment(100, 10, ("cat", "dog"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> module = VirtualSoftmax().build(timm.create_model("test_resnet", num_classes=2), experiment)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> VirtualSoftmax().forward_loss(module, batch)["output"].shape
        torch.Size([4, 2])
    """

    views: ClassVar[Views] = "single"
    name: Literal["virtual_softmax"] = "virtual_softmax"

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with its classifier's bias frozen at zero, so that the weights keep timm's names.

        Raises:
            UserError: the classifier is not a single linear layer.
        """
        from torch import nn

        from cskd_hf.models.layers import linear_classifier

        classifier = linear_classifier(model, self.name)
        if classifier.bias is not None:
            nn.init.zeros_(classifier.bias)
            classifier.bias.requires_grad_(False)
        return model

    def forward_loss(self, module: Any, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        classifier = module.get_classifier()
        if classifier.bias is not None and classifier.bias.requires_grad:
            raise UserError(
                "virtual_softmax: the classifier has a bias to train; write module = method.build(model, …)"
            )
        features = module.forward_head(module.forward_features(batch.images), pre_logits=True)
        output = classifier(features)
        virtual = virtual_logit(features, classifier.weight, batch.target)
        loss = F.cross_entropy(torch.cat((at_least_float32(output), virtual), dim=-1), batch.target)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss}
