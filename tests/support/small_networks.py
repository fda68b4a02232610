"""Names, widths and depths of the small networks, and images for them."""

from __future__ import annotations

import torch
from torch import Tensor

SMALL = ["preactresnet18_32px", "preactresnet10_32px", "densenet121_32px"]
ALL = [*SMALL, "resnet10"]
WIDTHS = {
    "preactresnet18_32px": [64, 64, 128, 256, 512],
    "preactresnet10_32px": [64, 64, 128, 256, 512],
    "densenet121_32px": [64, 256, 512, 1024, 1024],
}
LAYERS = {
    "preactresnet18_32px": 1 + 8 + 1,  # stem, blocks, classifier
    "preactresnet10_32px": 1 + 4 + 1,
    "densenet121_32px": 1 + 58 + 3 + 1 + 1,  # stem, layers, transitions, final norm, classifier
    "resnet10": 1 + 4 + 1,
}


def images(n: int = 2, size: int = 32, in_chans: int = 3) -> Tensor:
    return torch.randn(n, in_chans, size, size)
