"""A cosine classifier for any timm backbone, and the architecture under which timm reloads it.

`timm.create_model("cosine_classifier", backbone="resnet18", num_classes=10)` needs `import cskd_hf.models` first.
"""

from __future__ import annotations

import math
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from cskd_hf.precision import at_least_float32


class CosineLinear(nn.Linear):
    """s · cos θ between the features and each class's weights, in place of a linear classifier.

    Args:
        in_features: D.
        out_features: K ≥ 2.

    Attributes:
        scale: s, a buffer, initially √2 · ln(K − 1) (AdaCos).
    """

    scale: Tensor

    def __init__(self, in_features: int, out_features: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__(in_features, out_features, bias=False, device=device, dtype=dtype)
        # ln 1 = 0 would leave two classes without a gradient.
        scale = math.sqrt(2) * math.log(max(out_features - 1, 2))
        self.register_buffer("scale", torch.tensor(scale, device=device))

    def cosine(self, features: Tensor) -> Tensor:
        """cos θ, (N, K) and at least float32, of features (N, D)."""
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would round θ to two digits
            features, weight = (F.normalize(at_least_float32(rows), dim=-1) for rows in (features, self.weight))
            return F.linear(features, weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * self.cosine(features)


def with_cosine_head(model: Any) -> Any:
    """Replace a timm model's linear classifier by a `CosineLinear` with the same weights; returns the model."""
    linear = model.get_classifier()
    cosine = CosineLinear(linear.in_features, linear.out_features, linear.weight.device, linear.weight.dtype)
    cosine.weight = linear.weight
    name = next(name for name, module in model.named_modules() if module is linear)
    model.set_submodule(name, cosine)
    return model


def has_cosine_head(model: Any) -> bool:
    return isinstance(model.get_classifier(), CosineLinear)


def _create(backbone: str, **kwargs: Any) -> Any:
    model: Any = timm.create_model(backbone, **kwargs)
    # num_classes=0, timm's way to ask for features only, leaves no classifier to replace.
    return with_cosine_head(model) if isinstance(model.get_classifier(), nn.Linear) else model


default_cfgs = generate_default_cfgs({"cosine_classifier": {"num_classes": 1000, "input_size": (3, 224, 224)}})


@register_model
def cosine_classifier(pretrained: bool = False, backbone: str = "resnet18", **kwargs: Any) -> Any:
    """The timm architecture `backbone` with a cosine classifier; other keywords go to the backbone."""
    return build_model_with_cfg(_create, "cosine_classifier", pretrained, backbone=backbone, **kwargs)
