"""uint8 images → normalised floats, on the images' device."""

from __future__ import annotations

from torch import Tensor


def normalize(images: Tensor, mean: Tensor, std: Tensor, channels_last: bool) -> Tensor:
    """(images / 255 - mean) / std in float32.

    Args:
        images: (N, C, H, W) uint8, in either memory format; the loader's batches are channels_last.
        mean, std: (1, C, 1, 1).
        channels_last: memory format of the result.
    """
    if not channels_last:
        return images.contiguous().float().div_(255).sub_(mean).div_(std)
    # As rows of C × width numbers: an inner loop over the few channels of a pixel is four times as slow on a CPU.
    num, channels, height, width = images.shape
    rows = images.permute(0, 2, 3, 1).contiguous().view(num, height, width * channels)
    mean, std = mean.flatten().repeat(width), std.flatten().repeat(width)
    return rows.float().div_(255).sub_(mean).div_(std).view(num, height, width, channels).permute(0, 3, 1, 2)
