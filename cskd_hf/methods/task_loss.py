"""The task loss of a modern recipe: (binary) cross-entropy with label smoothing, Mixup and CutMix, for several methods.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016,
https://arxiv.org/abs/1512.00567 (label smoothing, section 7); Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond
Empirical Risk Minimization*, ICLR 2018, https://arxiv.org/abs/1710.09412; Yun, Han, Oh, Chun, Choe, Yoo, *CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019,
https://arxiv.org/abs/1905.04899; Wightman, Touvron, Jégou, *ResNet strikes back: An improved training procedure in
timm*, 2021, https://arxiv.org/abs/2110.00476 (binary cross-entropy).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationInfo, field_validator

from cskd_hf.errors import UserError
from cskd_hf.methods.base import Experiment, Method, Weight
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


class TaskLoss(Method):
    """Cross-entropy against (1 − ε) · q + ε/K, averaged over the batch; q is one-hot(y), or mixed labels.

    Mixing trains on λx + (1 − λ)x̃ (Mixup), or pastes a box of x̃ into x (CutMix), against λy + (1 − λ)ỹ, with one λ
    per batch and rank. x̃ is the batch in reverse order. The mixing is timm's: each rank mixes its own shard, so which
    images are mixed depends on the number of ranks. The logged training error is measured against y alone.

    With `bce_loss`, K binary classifiers learn the same targets. Evaluation, temperature and class-wise loss still
    apply a softmax to the logits.
    """

    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε, the share of the target spread evenly over all K classes. 0 disables it; Szegedy et al. use 0.1."""
    mixup_alpha: Weight = 0.0
    """α of Mixup: λ ~ Beta(α, α). 0 disables it; Zhang et al. use 1 on CIFAR and 0.2 to 0.4 on ImageNet."""
    cutmix_alpha: Weight = 0.0
    """α of CutMix: 1 − λ, the area of the box, ~ Beta(α, α). 0 disables it; Yun et al. use 1. If both are above 0, each
    batch draws one of the two with probability ½."""
    bce_loss: bool = False
    """Binary cross-entropy of each class against the smoothed and mixed targets, instead of cross-entropy."""
    bce_target_thresh: float | None = Field(default=None, ge=0, lt=1)
    """With `bce_loss`: targets above this become 1, the others 0. Wightman et al. use 0.2; null leaves them soft."""
    bce_sum: bool = False
    """With `bce_loss`: sum over the classes, as the class-wise loss does, instead of averaging: K times as large."""

    @field_validator("bce_target_thresh", "bce_sum")
    @classmethod
    def _of_bce(cls, value: float | bool | None, read: ValidationInfo) -> float | bool | None:
        if value not in (None, False) and not read.data.get("bce_loss"):
            raise ValueError("no value without bce_loss; write method.bce_loss=true, or leave it out")
        return value

    @property
    def mixes(self) -> bool:
        """Whether training mixes images."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model itself, if the settings fit the number of classes."""
        self._check_threshold(experiment)
        return model

    def _check_threshold(self, experiment: Experiment) -> None:
        """Reject a `bce_target_thresh` above which every class, or none, is a target of a plain image."""
        off = self.smoothing / len(experiment.class_names)
        threshold = self.bce_target_thresh
        if threshold is not None and not off <= threshold < 1 - self.smoothing + off:
            raise UserError(
                f"method.bce_target_thresh: read {threshold:g}, but method.smoothing={self.smoothing:g} makes targets "
                f"of {off:g} and {1 - self.smoothing + off:g}; write a value between the two"
            )

    def task(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`output`, and its task loss (scalar): logits (N, K) against labels (N,) or mixed labels (N, K)."""
        import torch.nn.functional as F

        logits = at_least_float32(output)
        target = target.to(logits) if target.is_floating_point() else target
        loss = (
            self._bce(logits, target)
            if self.bce_loss
            else F.cross_entropy(logits, target, label_smoothing=self.smoothing)
        )
        return output, loss

    def _bce(self, logits: Tensor, target: Tensor) -> Tensor:
        """timm's `BinaryCrossEntropy`, against the targets that timm's `Mixup` smooths."""
        import torch.nn.functional as F

        num_classes = logits.shape[-1]
        q = target if target.is_floating_point() else F.one_hot(target, num_classes).to(logits)
        q = (1 - self.smoothing) * q + self.smoothing / num_classes
        if self.bce_target_thresh is not None:
            q = (q > self.bce_target_thresh).to(q)
        loss = F.binary_cross_entropy_with_logits(logits, q, reduction="none")
        return loss.sum(dim=-1).mean() if self.bce_sum else loss.mean()

    def mixed_task(self, module: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits of the mixed images, and their task loss; None if nothing is mixed."""
        import torch

        if not self.mixes:
            return None
        # Not compiled: inductor has its own random generator and cannot trace NumPy's.
        images, target = torch.compiler.disable(self.mix)(module, images, target)
        return self.task(module(images), target)

    def mix(self, module: Any, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (N, C, H, W) and labels (N, K), drawn from torch's generator; the inputs stay intact."""
        import torch
        from timm.data import Mixup

        from cskd_hf.seeding import seeded

        # `task` smooths the mixed labels, to the same targets as timm's would be.
        mixup = Mixup(self.mixup_alpha, self.cutmix_alpha, label_smoothing=0.0, num_classes=module.num_classes)
        count = len(images)
        images = images.clone()  # timm mixes in place
        if count % 2:  # timm requires an even batch: repeat the last image
            images, target = torch.cat((images, images[-1:])), torch.cat((target, target[-1:]))
        with seeded(int(torch.randint(2**31, ()))):  # timm draws from NumPy's generator, which the step does not seed
            images, soft_target = mixup(images, target)
        return images[:count], soft_target[:count]
