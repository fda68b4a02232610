"""Augmentation as a pure function of (image, seed): encoded bytes in, uint8 pixels of the model's input size out.

Training's crop and flips are this package's own, straight into the batch. Where a recipe asks for more, such as colour
jitter or RandAugment, and in tests, the transforms are timm's, made by `timm.data.create_transform`. Normalisation is
left to the device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms as tv

from cskd_hf.data import crops
from cskd_hf.data.decode import decode, open_picture
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.seeding import seeded


class Transform:
    """Decode, augment, crop.

    Args:
        settings: the recipe's `transform`.
        is_training: random crop and flips, or resize and centre crop.

    Attributes:
        size: (height, width) of what comes out.
        uses_global_generators: it seeds the process's own generators for each image: not for several threads at once.
    """

    def __init__(self, settings: TransformSection, is_training: bool) -> None:
        self.settings, self.is_training = settings, is_training
        self.size = settings.input_size[1:]
        self.uses_global_generators = is_training and bool(settings.color_jitter or settings.auto_augment)
        if self.uses_global_generators:
            self._transform = _timms(settings)
        elif not is_training:
            # timm's own, resizing by Pillow: what is reported is what who loads the weights with timm will see. Ours,
            # half the time an image, differs by a level here and there.
            self._transform = create_transform(
                self.size,
                is_training=False,
                interpolation="bilinear" if settings.interpolation == "random" else settings.interpolation,
                crop_pct=settings.crop_pct,
                use_prefetcher=True,  # timm's word for: end with uint8
            )

    def __call__(self, image: Mapping[str, Any], seed: int) -> Tensor:
        """(3, H, W) uint8; equal for equal arguments, whatever was drawn before.

        Raises:
            UnreadableImageError: the image cannot be decoded.
        """
        out = torch.empty(*self.size, 3, dtype=torch.uint8)
        self.write(image, seed, out)
        return out.permute(2, 0, 1).contiguous()

    def write(self, image: Mapping[str, Any], seed: int, out: Tensor) -> None:
        """The same into a place of a batch.

        Args:
            out: (H, W, 3) uint8, contiguous.

        Raises:
            UnreadableImageError: the image cannot be decoded; `out` may then hold anything.
        """
        if self.is_training and not self.uses_global_generators:
            picture = open_picture(image)
            crop = self.draw(picture.height, picture.width, seed)
            pixels = torch.from_numpy(picture.region(crop.box))[None].permute(0, 3, 1, 2)
            out[None].permute(0, 3, 1, 2).copy_(crops.shown(pixels, crop, self.size))
            return
        rgb = decode(image)
        with seeded(seed) if self.is_training else nullcontext():
            out.copy_(torch.as_tensor(self._transform(rgb)).permute(1, 2, 0))

    def draw(self, height: int, width: int, seed: int) -> crops.Crop:
        """What training shows of an image of this size, where no transform of timm's is asked for."""
        return crops.draw_crop(self.settings, random.Random(seed), height, width)


def _timms(settings: TransformSection) -> tv.Compose:
    """timm's training transforms, ending with uint8."""
    _, height, width = settings.input_size
    try:
        crop, augment, to_uint8 = create_transform(
            (height, width),
            is_training=True,
            scale=settings.scale,
            ratio=settings.ratio,
            hflip=settings.hflip,
            vflip=settings.vflip,
            color_jitter=settings.color_jitter,
            auto_augment=settings.auto_augment,
            interpolation=settings.interpolation,
            use_prefetcher=True,  # timm's word for: end with uint8
            separate=True,
        )
    except AssertionError as error:  # timm's word for a policy string it cannot read
        raise UserError(f"transform.auto_augment: read {settings.auto_augment!r}: {error}") from None
    if settings.crop_padding is not None:
        mode = str_to_interp_mode("bilinear" if settings.interpolation == "random" else settings.interpolation)
        crop.transforms[:1] = [
            tv.Resize((height, width), mode),
            tv.RandomCrop((height, width), padding=settings.crop_padding),
        ]
    return tv.Compose([crop, augment, to_uint8])
