"""The paper's networks that timm lacks. Importing this module registers them; then `timm.create_model` builds them.

The 32-pixel networks have no downsampling before the second stage, which no keyword of timm's ResNet or DenseNet
expresses; a stem replaced after `create_model` would not survive a reload from the Hub.

Sources:
    He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016, https://arxiv.org/abs/1603.05027
    Huang, Liu, van der Maaten, Weinberger, *Densely Connected Convolutional Networks*, CVPR 2017,
    https://arxiv.org/abs/1608.06993
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from cskd_hf.models.staged import StagedNetwork


def conv(in_chs: int, out_chs: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, and a shortcut of the first ReLU's output.

    The paper's code has this form, and so do the published numbers of CS-KD and PS-KD. He et al. differ where the shape
    stays: their identity adds the block's input, before BatchNorm and ReLU.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv(in_chs, out_chs, 3, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = conv(out_chs, out_chs, 3)
        same_shape = stride == 1 and in_chs == out_chs
        self.downsample = nn.Identity() if same_shape else conv(in_chs, out_chs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        preact = F.relu(self.bn1(x), inplace=True)
        out = F.relu(self.bn2(self.conv1(preact)), inplace=True)
        return self.conv2(out) + self.downsample(preact)


class PreActResNet(StagedNetwork):
    """Pre-activation ResNet for 32-pixel images, 64-128-256-512 channels.

    As in the paper's code, and unlike He et al.: identity shortcuts start after the block's first ReLU, the stem has
    BatchNorm and ReLU, and the last block has none after it: its sum is pooled.

    Args:
        depths: blocks in each of the four stages.
        in_chans, **head: see `StagedNetwork`.
    """

    def __init__(self, depths: Sequence[int], in_chans: int = 3, **head: Any) -> None:
        widths = (64, 64, 128, 256, 512)
        stem = [conv(in_chans, widths[0], 3), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        stages = []
        for depth, in_chs, out_chs, stride in zip(depths, widths[:-1], widths[1:], (1, 2, 2, 2), strict=True):
            deeper = (PreActBlock(out_chs, out_chs) for _ in range(depth - 1))
            stages.append([PreActBlock(in_chs, out_chs, stride), *deeper])
        super().__init__(stem, stages, widths, in_chans=in_chans, **head)


class DenseLayer(nn.Module):
    """A 1×1 bottleneck and a 3×3 convolution; the new channels are concatenated before the input's."""

    def __init__(self, in_chs: int, growth_rate: int, bottleneck_chs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv(in_chs, bottleneck_chs, 1)
        self.bn2 = nn.BatchNorm2d(bottleneck_chs)
        self.conv2 = conv(bottleneck_chs, growth_rate, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return torch.cat((out, x), dim=1)


class DenseNet(StagedNetwork):
    """DenseNet-BC for 32-pixel images: compression 0.5, neither BatchNorm nor pooling in the stem.

    A stage is a dense block preceded by its transition, if any; the last one ends in BatchNorm and ReLU.

    Args:
        depths: layers in each dense block.
        growth_rate: k, the channels that each layer adds.
        in_chans, **head: see `StagedNetwork`.
    """

    def __init__(self, depths: Sequence[int], growth_rate: int = 32, in_chans: int = 3, **head: Any) -> None:
        chs = 2 * growth_rate
        widths, stem = [chs], [conv(in_chans, chs, 3)]
        stages: list[list[nn.Module]] = []
        for depth in depths:
            layers: list[nn.Module] = []
            if stages:
                transition = (nn.BatchNorm2d(chs), nn.ReLU(inplace=True), conv(chs, chs // 2, 1), nn.AvgPool2d(2))
                layers.append(nn.Sequential(*transition))
                chs //= 2
            for _ in range(depth):
                layers.append(DenseLayer(chs, growth_rate, bottleneck_chs=4 * growth_rate))
                chs += growth_rate
            stages.append(layers)
            widths.append(chs)
        # One module: checkpointed by itself, the in-place ReLU would overwrite the input it is recomputed from.
        stages[-1].append(nn.Sequential(nn.BatchNorm2d(chs), nn.ReLU(inplace=True)))
        super().__init__(stem, stages, widths, in_chans=in_chans, **head)


def _cfg(input_size: int, pool_size: int, crop_pct: float, first_conv: str) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, input_size, input_size),
        "pool_size": (pool_size, pool_size),
        "crop_pct": crop_pct,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": first_conv,
        "classifier": "fc",
    }


default_cfgs = generate_default_cfgs(
    {
        "preactresnet18_32px": _cfg(32, 4, 1.0, "stem.0"),
        "preactresnet10_32px": _cfg(32, 4, 1.0, "stem.0"),
        "densenet121_32px": _cfg(32, 4, 1.0, "stem.0"),
        "resnet10": _cfg(224, 7, 0.875, "conv1"),
    }
)


def _create_32px(model_cls: type[StagedNetwork], variant: str, pretrained: bool, **kwargs: Any) -> StagedNetwork:
    return build_model_with_cfg(model_cls, variant, pretrained, feature_cfg={"flatten_sequential": True}, **kwargs)


@register_model
def preactresnet18_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """PreAct ResNet-18 for CIFAR-100 and TinyImageNet."""
    return _create_32px(PreActResNet, "preactresnet18_32px", pretrained, **{"depths": (2, 2, 2, 2), **kwargs})


@register_model
def preactresnet10_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """PreAct ResNet-10: one block per stage."""
    return _create_32px(PreActResNet, "preactresnet10_32px", pretrained, **{"depths": (1, 1, 1, 1), **kwargs})


@register_model
def densenet121_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """DenseNet-121 for CIFAR-100 and TinyImageNet."""
    return _create_32px(DenseNet, "densenet121_32px", pretrained, **{"depths": (6, 12, 24, 16), **kwargs})


@register_model
def resnet10(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 for 224 pixels: timm's ResNet-18 with one block per stage."""
    model_args = {"block": BasicBlock, "layers": (1, 1, 1, 1)}
    return build_model_with_cfg(ResNet, "resnet10", pretrained, **{**model_args, **kwargs})
