"""Which part of an image is shown, and its resizing into a place of the batch.

The laws are torchvision's and timm's, written anew because theirs cost more than the resizing: pure functions of the
image's size and of uniform draws.
"""

from __future__ import annotations

import math
from random import Random

import numpy as np
import torch
from torch import Tensor

from cskd_hf.data.decode import Box


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


def shifted(images: Tensor, draws: Random, padding: int) -> Tensor:
    """torchvision's `RandomCrop(size, padding)`: pad with black, and cut the same size out at a uniform place.

    Args:
        images: (1, 3, H, W).
    """
    height, width = images.shape[2:]
    down, across = (int(draws.random() * (2 * padding + 1)) - padding for _ in range(2))
    out = torch.zeros_like(images)
    rows, columns = (slice(max(0, -by), min(side, side - by)) for by, side in ((down, height), (across, width)))
    out[:, :, rows, columns] = images[
        :, :, rows.start + down : rows.stop + down, columns.start + across : columns.stop + across
    ]
    return out


def resize(pixels: np.ndarray, size: tuple[int, int], bicubic: bool) -> Tensor:
    """Antialiased resize, within one level of Pillow's.

    Args:
        pixels: (h, w, 3) uint8, contiguous.
        size: (height, width) of the result.

    Returns:
        (1, 3, height, width) uint8 in channels_last: so torch takes its fast path, which runs in this thread alone.
    """
    images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if pixels.shape[:2] == size:
        return images
    resample = torch.ops.aten._upsample_bicubic2d_aa if bicubic else torch.ops.aten._upsample_bilinear2d_aa
    resized: Tensor = resample(images, size, False)
    return resized
