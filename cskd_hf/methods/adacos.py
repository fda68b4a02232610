"""AdaCos: cosine logits with a scale that adapts during training.

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
        cosine: cos θ, (B, K).
        target: y, (B,).
        scale: s of the previous step, scalar.
        index: (B,), the batch's; rows with index -1 do not count.

    Returns:
        The new s, a detached scalar. Mean and median are over the images of all ranks.
    """
    import torch

    from cskd_hf.models.collectives import gather_counted

    cosine, own_class = cosine.detach(), target[:, None]
    # logsumexp, so that a large s does not overflow.
    others = (scale * cosine).scatter(1, own_class, -math.inf).logsumexp(dim=1)
    angle = cosine.gather(1, own_class).squeeze(1).clamp(-1, 1).arccos()
    others, angle = gather_counted(torch.stack((others, angle), dim=1), index).unbind(dim=1)
    log_mean = others.logsumexp(dim=0) - math.log(len(others))
    # torch.median returns the lower of the two middle values; quantile averages them.
    return log_mean / angle.quantile(0.5).clamp(max=math.pi / 4).cos()


class AdaCos(Method):
    """Cross-entropy over s · cos θ, without a bias; s starts at √2 · ln(K − 1) and is updated by every batch.

    The cosine head is exported with the network, as the architecture `cosine_classifier`, which timm loads after
    `import cskd_hf.models`: no plain timm model normalises its features, and a division by their norm cannot be folded
    into a linear layer. The exported s is the last batch's, so calibration is measured on scaled cosines.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import AdaCos, Batch, Experiment
        >>> experiment = Experiment(100, 10, ("cat", "dog", "eel"), mean=(0.5,) * 3, std=(0.5,) * 3)
        >>> model = AdaCos().build(timm.create_model("test_resnet", num_classes=3), experiment)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 2, 0]), index=torch.arange(4))
        >>> AdaCos().forward_loss(model, batch)["loss"].backward()
    """

    views: ClassVar[Views] = "single"
    name: Literal["adacos"] = "adacos"

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model with a `CosineLinear` classifier.

        Raises:
            UserError: the classifier is not a single linear layer, or there are only two classes: then B_i is a single
                exponential and s decays to 0.
        """
        from cskd_hf.models.cosine import with_cosine_head
        from cskd_hf.models.layers import linear_classifier

        if len(experiment.class_names) < 3:
            raise UserError(
                "method.name: adacos needs at least 3 classes (with 2 its scale decays to 0); choose another"
            )
        linear_classifier(model, self.name)
        return with_cosine_head(model)

    def forward_loss(self, module: Any, batch: Batch) -> dict[str, Tensor]:
        import torch.nn.functional as F

        classifier = module.get_classifier()
        cosine = classifier.cosine(module.forward_head(module.forward_features(batch.images), pre_logits=True))
        scale = adaptive_scale(cosine, batch.target, classifier.scale, batch.index)
        classifier.scale.copy_(scale)
        output = scale * cosine
        loss = F.cross_entropy(output, batch.target)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss, "scale": scale}
