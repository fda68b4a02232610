"""AdaCos: cosine logits whose scale follows the training.

Zhang, Zhao, Qiao, Wang, Li, *AdaCos: Adaptively Scaling Cosine Logits for Effectively Learning Deep Face
Representations*, CVPR 2019, https://arxiv.org/abs/1905.00292.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.errors import UserError
from cskd_hf.methods.base import Experiment, Method

if TYPE_CHECKING:
    from torch import Tensor, nn


def adaptive_scale(cosine: Tensor, target: Tensor, scale: Tensor, index: Tensor) -> Tensor:
    """ln(mean_i B_i) / cos(min(π/4, median_i θ_{i,y})), where B_i = Σ_{k≠y} exp(s · cos θ_{i,k}).

    Args:
        cosine: cos θ, (B, K), float32.
        target: y, (B,).
        scale: s of the step before, scalar.
        index: (B,), a batch's: rows of an image -1 do not count.

    Returns:
        The new s, a scalar constant. Mean and median go over every process's images.
    """
    import torch

    from cskd_hf.models.collectives import gather_counted

    cosine, own = cosine.detach(), target[:, None]
    # The logarithm of a sum, so that a large s does not overflow.
    others = (scale * cosine).scatter(1, own, -math.inf).logsumexp(dim=1)
    angle = cosine.gather(1, own).squeeze(1).clamp(-1, 1).arccos()
    others, angle = gather_counted(torch.stack((others, angle), dim=1), index).unbind(dim=1)
    log_mean = others.logsumexp(dim=0) - math.log(len(others))
    # torch's median is the lower of the two middle ones; the mean of both does not depend on their order.
    middle = angle.quantile(0.5)
    return log_mean / middle.clamp(max=math.pi / 4).cos()


class AdaCos(Method):
    """Cross-entropy over s · cos θ, without a bias; s starts at √2 · ln(K − 1) and moves with every batch.

    The cosine head is part of what is exported, as the architecture `cosine_classifier`, which timm loads after
    `import cskd_hf.models`: no plain timm network normalises its features, and dividing by their length cannot be
    folded into a linear layer. The exported s is the last batch's.
    """

    views: ClassVar[Views] = "single"

    name: Literal["adacos"] = "adacos"

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with a `CosineLinear` for its classifier.

        Raises:
            UserError: the classifier is not one linear layer; or there are two classes, where B is one exponential
                and s falls to 0.
        """
        from cskd_hf.models.cosine import with_cosine_head
        from cskd_hf.models.layers import linear_classifier

        if len(experiment.class_names) < 3:
            raise UserError("method.name: adacos learns nothing from two classes, its scale falls to 0; choose another")
        linear_classifier(model, self.name)
        return with_cosine_head(model)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        model: Any = module
        classifier = model.get_classifier()
        cosine = classifier.cosine(model.forward_head(model.forward_features(batch.images), pre_logits=True))
        scale = adaptive_scale(cosine, batch.target, classifier.scale, batch.index)
        classifier.scale.copy_(scale)
        output = scale * cosine
        loss = F.cross_entropy(output, batch.target)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss, "scale": scale}
