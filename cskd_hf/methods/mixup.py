"""Mixup: training on convex combinations of images and of their labels; alone, or with CS-KD.

Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018,
https://arxiv.org/abs/1710.09412. The mixing is timm's, CutMix included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from cskd_hf.batch import Batch, Views
from cskd_hf.methods.base import Method, Temperature, Weight
from cskd_hf.methods.cskd import BatchNorm, class_wise_kd_loss, forward_views

if TYPE_CHECKING:
    from torch import Tensor, nn


class Mixup(Method):
    """Cross-entropy of λx + (1 − λ)x̃ against λy + (1 − λ)ỹ, λ ~ Beta(α, α), one λ per batch and rank.

    x̃ is the batch in reverse order. Each rank mixes its own shard, so which images are mixed depends on the number of
    ranks, as everywhere in timm. The logged training error is measured against y alone.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, Mixup
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> Mixup(mixup_alpha=1.0).forward_loss(model, batch)["loss"].backward()
    """

    views: ClassVar[Views] = "single"
    name: Literal["mixup"] = "mixup"
    mixup_alpha: Weight = 0.4
    """α; 0 disables Mixup. [ours]: the Mixup paper uses 1 on CIFAR and 0.2 to 0.4 on ImageNet."""
    cutmix_alpha: Weight = 0.0
    """α of CutMix (Yun et al., ICCV 2019). If both are above 0, each batch draws one of the two with probability ½."""

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        import torch
        import torch.nn.functional as F

        # Not compiled: inductor has its own random generator and cannot trace NumPy's.
        images, soft_target = torch.compiler.disable(self.mix)(module, batch.images, batch.target)
        output = module(images)
        loss = F.cross_entropy(output.float(), soft_target)
        return {"loss": loss, "output": output, "target": batch.target, "task_loss": loss}

    def mix(self, module: Any, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mixed images (N, C, H, W) and soft targets (N, K), drawn from torch's generator; the inputs stay intact."""
        import torch
        import torch.nn.functional as F
        from timm.data import Mixup as TimmMixup

        from cskd_hf.seeding import seeded

        num_classes: int = module.num_classes
        if self.mixup_alpha == 0 and self.cutmix_alpha == 0:
            return images, F.one_hot(target, num_classes).float()
        mixup = TimmMixup(self.mixup_alpha, self.cutmix_alpha, label_smoothing=0.0, num_classes=num_classes)
        count = len(images)
        images = images.clone()  # timm mixes in place
        if count % 2:  # timm requires an even batch: repeat the last image
            images, target = torch.cat((images, images[-1:])), torch.cat((target, target[-1:]))
        with seeded(int(torch.randint(2**31, ()))):  # timm draws from NumPy's generator, which the step does not seed
            images, soft_target = mixup(images, target)
        return images[:count], soft_target[:count]


class MixupCSKD(Mixup):
    """Mixup's cross-entropy + λ_cls · T² · L_cls(x, x′) on the unmixed pairs.

    Three forwards, all in train mode: the mixed images and x with gradient, x′ without [ours: the paper combines the
    two without saying how].

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, MixupCSKD
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> pairs = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> MixupCSKD().forward_loss(model, pairs)["loss"].backward()
    """

    views: ClassVar[Views] = "same_class"
    name: Literal["mixup_cskd"] = "mixup_cskd"  # type: ignore[assignment]
    temperature: Temperature = 4.0
    """T of the distillation, as in CS-KD."""
    distill_loss_weight: Weight = 1.0
    """λ_cls, as in CS-KD."""
    batch_norm: BatchNorm = "separate"
    """Of the unmixed pairs, as in CS-KD; the mixed images always get their own forward."""

    @property
    def cost(self) -> float:
        return 2 + (1 if self.batch_norm == "joint" else 1 / 3)

    def forward_loss(self, module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        images, partner_images = batch.images.chunk(2)
        anchors = Batch(images, batch.target.chunk(2)[0], batch.index, batch.skipped)  # see `Objective.forward`
        result = super().forward_loss(module, anchors)
        output, partner_output = forward_views(module, (images, partner_images), self.batch_norm)
        kd_loss = class_wise_kd_loss(output, partner_output, self.temperature)
        return {**result, "loss": result["task_loss"] + self.distill_loss_weight * kd_loss, "kd_loss": kd_loss}
