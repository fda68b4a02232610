"""A network that costs next to nothing at 224 px, registered with timm: its training is as fast as the loader."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from cskd_hf.models.staged import StagedNetwork

__all__ = ["BenchTiny", "bench_tiny"]


class Sparse(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images[..., ::8, ::8]


class BenchTiny(StagedNetwork):
    """Every eighth pixel, two convolutions, a classifier: less than a million multiplications per image."""

    def __init__(self, **head: Any) -> None:
        def layers(in_chs: int, out_chs: int, stride: int) -> list[nn.Module]:
            conv = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False)
            return [conv, nn.BatchNorm2d(out_chs), nn.ReLU(inplace=True)]

        stages = [[nn.Sequential(*layers(16, 32, 2))]]
        super().__init__([Sparse(), *layers(3, 16, 2)], stages, (16, 32), **head)


default_cfgs = generate_default_cfgs({"bench_tiny": {"input_size": (3, 224, 224), "classifier": "fc"}})


@register_model
def bench_tiny(pretrained: bool = False, **kwargs: Any) -> BenchTiny:
    return build_model_with_cfg(BenchTiny, "bench_tiny", pretrained, **kwargs)
