"""uint8 images to normalised floats, on their own device."""

from __future__ import annotations

from torch import Tensor


def normalize(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool) -> Tensor:
    """uint8 (N, 3, H, W) → float32, scaled to [0, 1], minus mean, over std, on the images' own device.

    Args:
        images: in either memory format; the loader's lie channels_last.
        mean, std: (1, 3, 1, 1).
        channels_last: memory format of what is returned.
    """
    if not channels_last:
        return images.contiguous().float().div_(255).sub_(mean).div_(std)
    # As rows of width × 3 numbers: over pixels of 3, a CPU's inner loop is that short, and takes four times as long.
    num, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).contiguous().view(num, height, width * channels)
    mean, std = mean.flatten().repeat(width), std.flatten().repeat(width)
    return rows.float().div_(255).sub_(mean).div_(std).view(num, height, width, channels).permute(0, 3, 1, 2)
