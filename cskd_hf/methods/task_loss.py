"""The task loss of a modern recipe: cross-entropy with label smoothing, Mixup and CutMix, shared by several methods.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, *Rethinking the Inception Architecture for Computer Vision*, CVPR 2016,
https://arxiv.org/abs/1512.00567 (label smoothing, section 7); Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond
Empirical Risk Minimization*, ICLR 2018, https://arxiv.org/abs/1710.09412; Yun, Han, Oh, Chun, Choe, Yoo, *CutMix:
Regularization Strategy to Train Strong Classifiers with Localizable Features*, ICCV 2019,
https://arxiv.org/abs/1905.04899. For unequal classes: Menon, Jayasumana, Rawat, Jain, Veit, Kumar, *Long-tail Learning
via Logit Adjustment*, ICLR 2021, https://arxiv.org/abs/2007.07314; Cui, Jia, Lin, Song, Belongie, *Class-Balanced Loss
Based on Effective Number of Samples*, CVPR 2019, https://arxiv.org/abs/1901.05555.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cskd_hf.methods.base import Experiment, Method, Weight
from cskd_hf.precision import at_least_float32

if TYPE_CHECKING:
    from torch import Tensor, nn


def class_weights(counts: Tensor, beta: float) -> Tensor:
    """w_k ∝ (1 − β) / (1 − β^n_k), scaled to a mean of 1 over the Σ n_k samples; between 1 and N / (K · n_k).

    Args:
        counts: n_k, (K,), at least 1 each.
        beta: β in [0, 1).

    Example:
        >>> import torch
        >>> from cskd_hf.methods.task_loss import class_weights
        >>> class_weights(torch.tensor([30.0, 10.0]), beta=0.0), class_weights(torch.tensor([30.0, 10.0]), beta=0.99)
        (tensor([1., 1.]), tensor([0.6990, 1.9029]))
    """
    weights = 1 / (1 - beta**counts)
    return weights * counts.sum() / (weights @ counts)


class TaskLoss(Method):
    """Cross-entropy against (1 − ε) · q + ε/K, averaged over the batch; q is one-hot(y), or mixed labels.

    Mixing trains on λx + (1 − λ)x̃ (Mixup), or pastes a box of x̃ into x (CutMix), against λy + (1 − λ)ỹ, with one λ
    per batch and rank. x̃ is the batch in reverse order. The mixing is timm's: each rank mixes its own shard, so which
    images are mixed depends on the number of ranks. The logged training error is measured against y alone.

    For unequal classes, the cross-entropy is of the logits f(x) + τ · log π, and class k's term of it counts w_k times,
    smoothed and mixed labels included. The network's output stays f(x): it is what a class-wise loss compares, so that
    this regularises the predictions made at test time, and its weight and temperature mean what they always do [ours].
    """

    smoothing: float = Field(default=0.0, ge=0, lt=1)
    """ε, the share of the target spread evenly over all K classes. 0 disables it; Szegedy et al. use 0.1."""
    mixup_alpha: Weight = 0.0
    """α of Mixup: λ ~ Beta(α, α). 0 disables it; Zhang et al. use 1 on CIFAR and 0.2 to 0.4 on ImageNet."""
    cutmix_alpha: Weight = 0.0
    """α of CutMix: 1 − λ, the area of the box, ~ Beta(α, α). 0 disables it; Yun et al. use 1. If both are above 0, each
    batch draws one of the two with probability ½."""
    logit_adjustment: Weight = 0.0
    """τ of the logit-adjusted loss, where π_k is the share of class k among the training samples, as `data.sampling`
    draws them. 0 disables it; Menon et al. use 1. The trained f(x) assumes equally frequent classes."""
    class_weight_beta: float = Field(default=0.0, ge=0, lt=1)
    """β of the class weights w_k ∝ (1 − β) / (1 − β^n_k), with a mean of 1 over the training samples. An epoch has n_k
    samples of class k, as `data.sampling` draws them. 0 disables it; near 1, w_k ∝ 1/n_k. Cui et al. choose among 0.9,
    0.99, 0.999 and 0.9999."""

    @property
    def mixes(self) -> bool:
        """Whether training mixes images."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    @property
    def reweights(self) -> bool:
        """Whether the loss depends on how frequent a class is."""
        return self.logit_adjustment > 0 or self.class_weight_beta > 0

    def build(self, model: nn.Module, experiment: Experiment) -> nn.Module:
        """The model, with a buffer for what unequal classes need; not saved with the weights: the images have it."""
        import torch

        counts = torch.tensor(experiment.class_counts or [1] * len(experiment.class_names), dtype=torch.float64)
        counts.clamp_(min=1)  # a class without images, which smoothed labels may name
        if self.logit_adjustment > 0:
            shift = self.logit_adjustment * (counts / counts.sum()).log()
            model.register_buffer("logit_shift", shift.float(), persistent=False)
        if self.class_weight_beta > 0:
            weights = class_weights(counts, self.class_weight_beta)
            model.register_buffer("class_weights", weights.float(), persistent=False)
        return model

    def task(self, module: Any, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """`output`, and its task loss (scalar): logits (N, K) against labels (N,) or mixed labels (N, K)."""
        import torch.nn.functional as F

        logits = at_least_float32(output)
        target = target.to(logits) if target.is_floating_point() else target
        if self.logit_adjustment > 0:
            logits = logits + module.logit_shift
        weights = module.class_weights.to(logits) if self.class_weight_beta > 0 else None
        loss = F.cross_entropy(logits, target, weights, label_smoothing=self.smoothing, reduction="sum")
        return output, loss / len(logits)  # torch's mean would divide by the batch's weights

    def mixed_task(self, module: nn.Module, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """Logits of the mixed images, and their task loss; None if nothing is mixed."""
        import torch

        if not self.mixes:
            return None
        # Not compiled: inductor has its own random generator and cannot trace NumPy's.
        images, target = torch.compiler.disable(self.mix)(module, images, target)
        return self.task(module, module(images), target)

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
