"""Classifiers on a network's earlier stages, for BYOT."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from cskd_hf.errors import UserError

NUM_BRANCHES = 3


class Branch(nn.Module):
    """Adapts a stage's feature map to the shape of the last stage's, pools and classifies it.

    Blocks of a depthwise 3×3 and a pointwise convolution, each followed by norm and ReLU: one per halving of the
    resolution, at least one.

    Args:
        in_chs: channels of the stage.
        out_chs: channels of the last stage.
        num_halvings: log2 of the ratio of their resolutions.
        num_classes: K.
        norm: norm layer, a function of the number of channels.
    """

    def __init__(self, in_chs: int, out_chs: int, num_halvings: int, num_classes: int, norm: Any) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for block in range(max(num_halvings, 1)):
            stride = 2 if block < num_halvings else 1
            width = out_chs if block >= num_halvings - 1 else min(2 * in_chs, out_chs)
            depthwise = nn.Conv2d(in_chs, in_chs, 3, stride=stride, padding=1, groups=in_chs, bias=False)
            pointwise = nn.Conv2d(in_chs, width, 1, bias=False)
            blocks += [depthwise, norm(in_chs), nn.ReLU(inplace=True), pointwise, norm(width), nn.ReLU(inplace=True)]
            in_chs = width
        self.adapt = nn.Sequential(*blocks)
        self.classifier = nn.Linear(out_chs, num_classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Feature map (N, C, h, w) → pooled features (N, C_last) and logits (N, K)."""
        features = self.adapt(maps).mean(dim=(2, 3))
        return features, self.classifier(features)


class ModelWithBranches(nn.Module):
    """A timm model with a classifier on each of the three stages before the last.

    All but the shallowest also have a linear layer, which maps their features to the last stage's for the hint.

    Stages come from the model's `feature_info`: the last four of a stem and four stages, or the quarters of a deeper
    list such as a plain transformer's, which has one entry per block. The branches' norm is BatchNorm if the backbone
    has any, else GroupNorm with one group, so that an image's output stays independent of the batch.

    Args:
        model: a timm model with `feature_info` and `forward_intermediates`.
        name: the method's name, for error messages.

    Raises:
        UserError: the model lacks one of them, or has fewer than four stages.
    """

    def __init__(self, model: Any, name: str) -> None:
        super().__init__()
        try:
            info, _ = list(model.feature_info), model.forward_intermediates
        except AttributeError as error:
            raise UserError(
                f"method.name: {name} needs the model's stages: {error}; choose another model or method"
            ) from None
        count = len(info)
        if count <= NUM_BRANCHES:
            raise UserError(
                f"method.name: {name} needs {NUM_BRANCHES + 1} stages, and {type(model).__name__} has {count}; choose "
                "another model or method"
            )
        if count <= NUM_BRANCHES + 2:
            self.stages = list(range(count - NUM_BRANCHES - 1, count))
        else:
            self.stages = [count * quarter // 4 - 1 for quarter in (1, 2, 3, 4)]
        has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        norm = nn.BatchNorm2d if has_batch_norm else lambda chs: nn.GroupNorm(1, chs)
        *earlier, last = (info[stage] for stage in self.stages)
        self.model = model
        self.branches = nn.ModuleList()
        self.hints = nn.ModuleList(nn.Linear(last["num_chs"], last["num_chs"]) for _ in earlier[1:])
        for stage in earlier:
            num_halvings = round(math.log2(last["reduction"] / stage["reduction"]))
            self.branches.append(Branch(stage["num_chs"], last["num_chs"], num_halvings, model.num_classes, norm))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Images (N, C, H, W) → logits (N, K), the last stage's pooled features (N, D), two hints, three logits."""
        final, (*earlier, last) = self.model.forward_intermediates(images, indices=self.stages)
        results = [branch(maps) for branch, maps in zip(self.branches, earlier, strict=True)]
        hints = [hint(features) for hint, (features, _) in zip(self.hints, results[1:], strict=True)]
        return self.model.forward_head(final), last.mean(dim=(2, 3)), hints, [output for _, output in results]
