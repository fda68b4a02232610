"""The paper's networks that timm does not have, registered with timm: import this module, then `timm.create_model`.

The 32-pixel ones keep the full resolution in the stem and the first stage, which no keyword of timm's own ResNet or
DenseNet can say; a stem replaced after `create_model` would not survive a reload from the Hub.

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


def conv3x3(in_chs: int, out_chs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size=3, stride=stride, padding=1, bias=False)


def conv1x1(in_chs: int, out_chs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_chs, out_chs, kernel_size=1, stride=stride, bias=False)


class PreActBlock(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, and a shortcut."""

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv3x3(in_chs, out_chs, stride)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.conv2 = conv3x3(out_chs, out_chs)
        self.shortcut = conv1x1(in_chs, out_chs, stride) if stride != 1 or in_chs != out_chs else None

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(x), inplace=True)
        # A projection shares the pre-activation; an identity must not, or no clean path would join the blocks.
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(F.relu(self.bn2(self.conv1(out)), inplace=True))
        return out + shortcut


class PreActResNet(StagedNetwork):
    """Pre-activation ResNet for 32-pixel images, 64-128-256-512 channels.

    Against He et al., it has BatchNorm and ReLU in the stem and none after the last block, whose sum goes to pooling.

    Args:
        depths: Blocks in each of the four stages.
        in_chans: Channels of the image.
        **head: `num_classes`, `global_pool`, `drop_rate`: see `StagedNetwork`.
    """

    def __init__(self, depths: Sequence[int], in_chans: int = 3, **head: Any) -> None:
        widths = (64, 64, 128, 256, 512)
        stem = [conv3x3(in_chans, widths[0]), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        stages = []
        for depth, in_chs, out_chs, stride in zip(depths, widths[:-1], widths[1:], (1, 2, 2, 2), strict=True):
            deeper = (PreActBlock(out_chs, out_chs) for _ in range(depth - 1))
            stages.append([PreActBlock(in_chs, out_chs, stride), *deeper])
        super().__init__(stem, stages, widths, in_chans=in_chans, **head)


class DenseLayer(nn.Module):
    """A 1×1 bottleneck and a 3×3 convolution, whose output is put in front of the input's channels."""

    def __init__(self, in_chs: int, growth_rate: int, bottleneck_chs: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chs)
        self.conv1 = conv1x1(in_chs, bottleneck_chs)
        self.bn2 = nn.BatchNorm2d(bottleneck_chs)
        self.conv2 = conv3x3(bottleneck_chs, growth_rate)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return torch.cat((out, x), dim=1)


class DenseNet(StagedNetwork):
    """DenseNet-BC for 32-pixel images: compression 0.5, and neither BatchNorm nor pooling in the stem.

    A stage is a dense block with the transition before it, where there is one; the last also ends in BatchNorm and
    ReLU.

    Args:
        depths: Layers in each dense block.
        growth_rate: Channels that each layer adds (k).
        in_chans: Channels of the image.
        **head: `num_classes`, `global_pool`, `drop_rate`: see `StagedNetwork`.
    """

    def __init__(self, depths: Sequence[int], growth_rate: int = 32, in_chans: int = 3, **head: Any) -> None:
        chs = 2 * growth_rate
        widths = [chs]
        stem = [conv3x3(in_chans, chs)]
        stages: list[list[nn.Module]] = []
        for depth in depths:
            layers: list[nn.Module] = []
            if stages:
                transition = (nn.BatchNorm2d(chs), nn.ReLU(inplace=True), conv1x1(chs, chs // 2), nn.AvgPool2d(2))
                layers.append(nn.Sequential(*transition))
                chs //= 2
            for _ in range(depth):
                layers.append(DenseLayer(chs, growth_rate, bottleneck_chs=4 * growth_rate))
                chs += growth_rate
            stages.append(layers)
            widths.append(chs)
        # One module: checkpointed alone, the in-place ReLU would overwrite the input it is recomputed from.
        stages[-1].append(nn.Sequential(nn.BatchNorm2d(chs), nn.ReLU(inplace=True)))
        super().__init__(stem, stages, widths, in_chans=in_chans, **head)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "preact_resnet18_32px": _cfg(),
        "preact_resnet10_32px": _cfg(),
        "densenet121_32px": _cfg(),
        "resnet10": _cfg(input_size=(3, 224, 224), pool_size=(7, 7), crop_pct=0.875, first_conv="conv1"),
    }
)


def _create_32px(model_cls: type[StagedNetwork], variant: str, pretrained: bool, **kwargs: Any) -> StagedNetwork:
    return build_model_with_cfg(model_cls, variant, pretrained, feature_cfg={"flatten_sequential": True}, **kwargs)


@register_model
def preact_resnet18_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """PreAct ResNet-18 for CIFAR-100 and TinyImageNet."""
    return _create_32px(PreActResNet, "preact_resnet18_32px", pretrained, **{"depths": (2, 2, 2, 2), **kwargs})


@register_model
def preact_resnet10_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """PreAct ResNet-10, the same with one block a stage."""
    return _create_32px(PreActResNet, "preact_resnet10_32px", pretrained, **{"depths": (1, 1, 1, 1), **kwargs})


@register_model
def densenet121_32px(pretrained: bool = False, **kwargs: Any) -> StagedNetwork:
    """DenseNet-121 for CIFAR-100 and TinyImageNet."""
    return _create_32px(DenseNet, "densenet121_32px", pretrained, **{"depths": (6, 12, 24, 16), **kwargs})


@register_model
def resnet10(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet-10 for 224 pixels: timm's ResNet-18 with one block a stage, `zero_init_last` and all."""
    model_args = {"block": BasicBlock, "layers": (1, 1, 1, 1)}
    return build_model_with_cfg(ResNet, "resnet10", pretrained, **{**model_args, **kwargs})
