"""timm's random erasing, applied to uint8 images before they are normalised.

Zhong, Zheng, Kang, Li, Yang, *Random Erasing Data Augmentation*, AAAI 2020, https://arxiv.org/abs/1708.04896
"""

from __future__ import annotations

import math

import torch
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.recipe.sections import TransformSection, of_channels


class Erasing:
    """timm's `RandomErasing` of a normalised image, rounded to uint8 and clipped to its range.

    Draws from the global generators of Python and torch, as timm does.

    Args:
        settings: the recipe's `transform`; mean and std null mean ImageNet's.
    """

    def __init__(self, settings: TransformSection) -> None:
        self._erase = RandomErasing(settings.re_prob, mode=settings.re_mode, max_count=settings.re_count, device="cpu")
        self.mean, self.std = (
            torch.tensor(values or of_channels(default, settings.input_size[0])).view(-1, 1, 1)
            for values, default in ((settings.mean, IMAGENET_MEAN), (settings.std, IMAGENET_STD))
        )

    def __call__(self, image: Tensor) -> None:
        """Erase rectangles of an image (H, W, channels), uint8, in place."""
        # timm writes normalised values; the pixels that it leaves stay NaN.
        fill = self._erase(torch.full((len(self.mean), *image.shape[:2]), math.nan))
        kept = fill.isnan()
        if not kept.all():
            pixels = fill.mul_(self.std).add_(self.mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
            image.copy_(torch.where(kept.permute(1, 2, 0), image, pixels.permute(1, 2, 0)))
