"""Augmentation as a pure function of (image, seed): encoded bytes in, (3, H, W) uint8 out.

The transforms are timm's own, made by `timm.data.create_transform`; normalisation is left to the device.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from timm.data import create_transform
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms as tv

from cskd_hf.data.decode import decode
from cskd_hf.errors import UserError
from cskd_hf.recipe_sections import TransformSection


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Every generator that timm's and torchvision's transforms draw from, seeded, and put back afterwards.

    Put back because with `data.workers: 0` they are the training process's own, which dropout draws from.
    """
    python, numpy, torch_cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would touch the accelerator's generators too
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(torch_cpu)


class Transform:
    """Decode, augment, crop.

    Args:
        settings: the recipe's `transform`.
        is_training: random crop and flips, or resize and centre crop.
    """

    def __init__(self, settings: TransformSection, is_training: bool) -> None:
        self.is_training = is_training
        _, height, width = settings.input_size
        if is_training:
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
            self._transform = tv.Compose([crop, augment, to_uint8])
        else:
            self._transform = create_transform(
                (height, width),
                is_training=False,
                interpolation="bilinear" if settings.interpolation == "random" else settings.interpolation,
                crop_pct=settings.crop_pct,
                use_prefetcher=True,
            )

    def __call__(self, image: Mapping[str, Any], seed: int) -> torch.Tensor:
        """(3, H, W) uint8; equal for equal arguments, whatever was drawn before.

        Raises:
            UnreadableImageError: the image cannot be decoded.
        """
        rgb = decode(image)
        if not self.is_training:
            return torch.as_tensor(self._transform(rgb))
        with seeded(seed):
            return torch.as_tensor(self._transform(rgb))
