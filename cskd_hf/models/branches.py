"""Classifiers on a network's earlier stages."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from cskd_hf.errors import UserError

NUM_BRANCHES = 3


class Branch(nn.Module):
    """A stage's feature map brought to the shape of the last one, and a classifier on it.

    Blocks of a depthwise 3×3 and a pointwise convolution, each with norm and ReLU: one a halving of the resolution, at
    least one.

    Args:
        in_chs, out_chs: channels of the stage and of the last one.
        num_halvings: how often the last map's side is half of the stage's.
        num_classes: K.
        norm: makes a norm of so many channels.
    """

    def __init__(self, in_chs: int, out_chs: int, num_halvings: int, num_classes: int, norm: Any) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for block in range(max(num_halvings, 1)):
            stride = 2 if block < num_halvings else 1
            wider = out_chs if block >= num_halvings - 1 else min(2 * in_chs, out_chs)
            blocks += [
                nn.Conv2d(in_chs, in_chs, 3, stride=stride, padding=1, groups=in_chs, bias=False),
                norm(in_chs),
                nn.ReLU(inplace=True),
                nn.Conv2d(in_chs, wider, 1, bias=False),
                norm(wider),
                nn.ReLU(inplace=True),
            ]
            in_chs = wider
        self.adapt = nn.Sequential(*blocks)
        self.classifier = nn.Linear(out_chs, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map (N, C, h, w) → adapted map (N, C_last, h_last, w_last) and logits (N, K)."""
        adapted = self.adapt(maps)
        return adapted, self.classifier(adapted.mean(dim=(2, 3)))


class Branched(nn.Module):
    """A timm model with a classifier on each of its three stages before the last.

    Stages are the model's `feature_info`: the last four of a stem and four stages, the quarters of a deeper list, such
    as a plain transformer's one entry a block. A branch's norm is the backbone's: BatchNorm where that has any, else
    GroupNorm with one group, which leaves no image's output to depend on the others'.

    Args:
        model: any timm model with `feature_info` and `forward_intermediates`.
        name: of the method that asks, for the error.

    Raises:
        UserError: the model has not got them, or fewer than four stages.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        what = type(model).__name__
        if not (callable(_of(model, "forward_intermediates")) and _of(model, "feature_info")):
            raise UserError(
                f"method.name: {name} needs the model's stages, and timm's {what} has no feature_info with "
                "forward_intermediates; choose another model or method"
            )
        info = list(model.feature_info)
        count = len(info)
        if count <= NUM_BRANCHES:
            raise UserError(
                f"method.name: {name} needs {NUM_BRANCHES + 1} stages, and {what} has {count}; choose another model or "
                "method"
            )
        if count <= NUM_BRANCHES + 2:
            self.stages = list(range(count - NUM_BRANCHES - 1, count))
        else:
            self.stages = [count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        has_batch_norm = any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
        norm = nn.BatchNorm2d if has_batch_norm else lambda chs: nn.GroupNorm(1, chs)
        *earlier, last = (info[stage] for stage in self.stages)
        self.model = model
        self.branches = nn.ModuleList(
            Branch(
                stage["num_chs"],
                last["num_chs"],
                round(math.log2(last["reduction"] / stage["reduction"])),
                model.num_classes,
                norm,
            )
            for stage in earlier
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Images (N, C, H, W) → logits (N, K) and last map, then every branch's adapted map and logits."""
        final, (*earlier, last) = self.model.forward_intermediates(images, indices=self.stages)
        adapted, outputs = [], []
        for branch, maps in zip(self.branches, earlier, strict=True):
            fitted, output = branch(maps)
            if fitted.shape[2:] != last.shape[2:]:  # odd sizes round differently from one family to the next
                fitted = F.adaptive_avg_pool2d(fitted, last.shape[2:])
            adapted.append(fitted)
            outputs.append(output)
        return self.model.forward_head(final), last, adapted, outputs


def _of(model: Any, name: str) -> Any:
    """timm's models differ in what they have: the one question that no common interface answers."""
    return getattr(model, name, None)
