"""Which part of an image is shown, drawn before a pixel is decoded, and what then is made of the pixels.

The laws are torchvision's and timm's, written anew because theirs cost more than the resizing: pure functions of the
image's size and of uniform draws.
"""

from __future__ import annotations

import math
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cskd_hf.data.decode import Box
from cskd_hf.recipe.sections import TransformSection


class Crop(NamedTuple):
    """What training shows of an image."""

    box: Box  # decoded and resized
    bicubic: bool
    shift: tuple[int, int] | None  # down and right by so many pixels after resizing, with black behind
    flips: tuple[int, ...]  # dimensions of (1, 3, H, W)


def draw_crop(settings: TransformSection, draws: Random, height: int, width: int) -> Crop:
    """The crop and flips that a recipe asks for, of an image of this size."""
    flips = tuple(dim for dim, chance in ((3, settings.hflip), (2, settings.vflip)) if draws.random() < chance)
    if settings.crop_padding is not None:
        box = Box(0, 0, height, width)
        return Crop(box, settings.interpolation == "bicubic", draw_shift(draws, settings.crop_padding), flips)
    bicubic = draws.random() < 0.5 if settings.interpolation == "random" else settings.interpolation == "bicubic"
    return Crop(random_resized_crop(draws, height, width, settings.scale, settings.ratio), bicubic, None, flips)


def shown(pixels: Tensor, crop: Crop, size: tuple[int, int]) -> Tensor:
    """(1, 3, height, width) uint8 of the pixels of a crop's box.

    Args:
        pixels: (1, 3, h, w) uint8, on any device; on a CPU in channels_last, or resizing takes twice the time.
        size: (height, width) of the result.
    """
    images = resize(pixels, size, crop.bicubic)
    if crop.shift is not None:
        images = shifted(images, *crop.shift)
    return images.flip(crop.flips) if crop.flips else images


def random_resized_crop(
    draws: Random, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """torchvision's `RandomResizedCrop`, equal in distribution.

    Area share uniform, log of the aspect ratio uniform, place uniform; after ten crops that do not fit, the largest
    central one whose ratio is allowed.

    Args:
        draws: only its `random()` is used, whose stream Python has frozen.
        scale: of the area. ratio: width over height.
    """
    area = height * width
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        target = area * (scale[0] + (scale[1] - scale[0]) * draws.random())
        aspect = math.exp(low + (high - low) * draws.random())
        crop_width, crop_height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws.random() * (height - crop_height + 1))
            left = int(draws.random() * (width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    if width / height < ratio[0]:
        crop_width, crop_height = width, min(height, max(1, round(width / ratio[0])))
    elif width / height > ratio[1]:
        crop_width, crop_height = min(width, max(1, round(height * ratio[1]))), height
    else:
        crop_width, crop_height = width, height
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def draw_shift(draws: Random, padding: int) -> tuple[int, int]:
    """torchvision's `RandomCrop(size, padding)`: pad with black, and cut the same size out at a uniform place."""
    down, across = (int(draws.random() * (2 * padding + 1)) - padding for _ in range(2))
    return down, across


def shifted(images: Tensor, down: int, across: int) -> Tensor:
    """(1, 3, H, W), of whose pixels the first is the one `down` and `across` from it; black where there is none."""
    height, width = images.shape[2:]
    out = torch.zeros_like(images)
    rows, columns = (slice(max(0, -by), min(side, side - by)) for by, side in ((down, height), (across, width)))
    out[:, :, rows, columns] = images[
        :, :, rows.start + down : rows.stop + down, columns.start + across : columns.stop + across
    ]
    return out


def resize(images: Tensor, size: tuple[int, int], bicubic: bool) -> Tensor:
    """Antialiased resize, within a level of Pillow's, seldom two.

    Args:
        images: (1, 3, h, w) uint8; on a CPU in channels_last, so that torch takes its fast path, in this thread alone.
        size: (height, width) of the result.

    Returns:
        (1, 3, height, width) uint8.
    """
    if images.shape[2:] == size:
        return images
    if images.device.type != "cpu":  # there torch resizes floats only
        mode = "bicubic" if bicubic else "bilinear"
        return F.interpolate(images.float(), size, mode=mode, antialias=True).round_().clamp_(0, 255).to(torch.uint8)
    resample = torch.ops.aten._upsample_bicubic2d_aa if bicubic else torch.ops.aten._upsample_bilinear2d_aa
    resized: Tensor = resample(images, size, False)
    return resized
