"""DDGSD: data-distortion guided self-distillation between two augmentations of one image.

Xu, Liu, *Data-Distortion Guided Self-Distillation for Deep Neural Networks*, AAAI 2019,
https://doi.org/10.1609/aaai.v33i01.33015565.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method, Temperature, Weight
from cskd_hf.methods.cskd import class_wise_kd_loss
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor


def mean_discrepancy(features: Tensor, other_features: Tensor, index: Tensor) -> Tensor:
    """‖mean f − mean f′‖², scalar: the squared maximum mean discrepancy under a linear kernel.

    Args:
        features: f, (B, D).
        other_features: f′, (B, D), of the other augmentations.
        index: (B,), the batch's; means are over the images of all ranks, and rows with index -1 do not count.
    """
    from cskd_hf.models.collectives import global_mean

    return global_mean(at_least_float32(features) - at_least_float32(other_features), index).square().sum()


class DDGSD(Method):
    """L_CE over both augmentations + λ · T² · KL both ways + μ · ‖mean f − mean f′‖².

    One forward over both halves, [first | second] along the batch. No code of the authors was found, and copies differ
    in their reductions. These are [ours]:

    * Cross-entropy is averaged over all 2B images, so that λ weighs the KL as in the other methods and a supervised
      image counts as it does under cross-entropy.
    * KL is summed over classes and averaged over all 2B images: half the sum of both directions. Each prediction is the
      other's constant teacher, and T² keeps the gradient's scale independent of T, as in every distillation here.
    * The feature distance is summed over the features. It is between the means over the global batch, not between the
      two views of each image, which is what makes it a maximum mean discrepancy.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import DDGSD, Batch
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.tensor([7, 2, 7, 2]))
        >>> result = DDGSD().forward_loss(timm.create_model("test_resnet", num_classes=2), batch)
        >>> sorted(result.keys() - {"loss", "output", "target"})
        ['feature_loss', 'kd_loss', 'task_loss']
    """

    views: ClassVar[Views] = "same_image"
    name: Literal["ddgsd"] = "ddgsd"
    temperature: Temperature = 3.0
    """T of the distillation. [ours]"""
    distill_loss_weight: Weight = 1.0
    """λ, of the KL between the two predictions, each the other's constant teacher. [ours]"""
    feature_loss_weight: Weight = 5e-4
    """μ, of the squared distance between the mean pooled features. [ours]"""

    @property
    def cost(self) -> float:
        return 2.0

    def forward_loss(self, module: Any, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        from cskd_hf.models.layers import freeze_running_statistics

        maps = module.forward_features(batch.images)
        output = module.forward_head(maps)
        with freeze_running_statistics(module):  # of norms in the head, which `output` has updated
            features = module.forward_head(maps, pre_logits=True)
        first, second = output.chunk(2)
        first_features, second_features = features.chunk(2)
        task_loss = F.cross_entropy(at_least_float32(output), batch.target)
        kd_loss = class_wise_kd_loss(output, torch.cat((second, first)), self.temperature)
        feature_loss = mean_discrepancy(first_features, second_features, batch.index.chunk(2)[0])
        loss = task_loss + self.distill_loss_weight * kd_loss + self.feature_loss_weight * feature_loss
        terms = {"task_loss": task_loss, "kd_loss": kd_loss, "feature_loss": feature_loss}
        return {"loss": loss, "output": output, "target": batch.target, **terms}
