"""Mixup: training on convex combinations of images and of their labels; alone, or with CS-KD.

Zhang, Cisse, Dauphin, Lopez-Paz, *mixup: Beyond Empirical Risk Minimization*, ICLR 2018,
https://arxiv.org/abs/1710.09412.
"""

from __future__ import annotations

from typing import Literal

from cskd_hf.methods.base import Weight
from cskd_hf.methods.cross_entropy import CrossEntropy
from cskd_hf.methods.cskd import CSKD


class Mixup(CrossEntropy):
    """`CrossEntropy` with Mixup on by default.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, Mixup
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> batch = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> Mixup(mixup_alpha=0.2).forward_loss(model, batch)["loss"].backward()
    """

    name: Literal["mixup"] = "mixup"  # type: ignore[assignment]
    mixup_alpha: Weight = 1.0
    """α: λ ~ Beta(α, α). The paper uses 1 on CIFAR, and 0.2 to 0.4 on ImageNet."""


class MixupCSKD(CSKD):
    """`CSKD` with Mixup on by default in its task loss.

    Example:
        >>> import timm, torch
        >>> from cskd_hf import Batch, MixupCSKD
        >>> model = timm.create_model("test_resnet", num_classes=2)
        >>> pairs = Batch(torch.rand(4, 3, 32, 32), target=torch.tensor([0, 1, 0, 1]), index=torch.arange(4))
        >>> MixupCSKD().forward_loss(model, pairs)["loss"].backward()
    """

    name: Literal["mixup_cskd"] = "mixup_cskd"  # type: ignore[assignment]
    mixup_alpha: Weight = 1.0
    """α: λ ~ Beta(α, α), as in `mixup`."""
