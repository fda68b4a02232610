"""The common base of the 32-pixel networks: stem, stages and classifier behind timm's model interface."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import SelectAdaptivePool2d, create_classifier
from timm.models import checkpoint_seq
from timm.models._features import feature_take_indices  # timm has no public name for it
from torch import Tensor, nn


class StagedNetwork(nn.Module):
    """Stem, stages, pooling and a linear classifier.

    Weights have PyTorch's default initialisation, as in the paper. Features are indexed as in timm's ResNet and
    DenseNet: 0 is the stem, i ≥ 1 the i-th stage.

    Args:
        stem: layers at full resolution.
        stages: the layers of each stage.
        widths: output channels of the stem and of each stage. The first stage has stride 1, each later one 2.
        in_chans: channels of the image.
        num_classes: K; 0 for no classifier.
        global_pool: timm's pooling before the classifier; '' with `num_classes=0` returns feature maps.
        drop_rate: dropout before the classifier.
    """

    global_pool: SelectAdaptivePool2d
    fc: nn.Module

    def __init__(
        self,
        stem: Sequence[nn.Module],
        stages: Sequence[Sequence[nn.Module]],
        widths: Sequence[int],
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        self.num_features = widths[-1]
        self.grad_checkpointing = False

        self.stem = nn.Sequential(*stem)
        self.stages = nn.Sequential(*(nn.Sequential(*layers) for layers in stages))
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)

        # timm's `features_only` flattens the outer Sequentials: the stem is addressed by its last layer.
        modules = [f"stem.{len(stem) - 1}", *(f"stages.{i}" for i in range(len(stages)))]
        self.feature_info = [
            {"num_chs": width, "reduction": 2 ** max(i - 1, 0), "module": module}
            for i, (width, module) in enumerate(zip(widths, modules, strict=True))
        ]

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions that order the parameters by depth, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward; as everywhere in timm, BatchNorm then updates twice a step."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier; `global_pool=None` keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self.num_classes = num_classes
        self.global_pool, fc = create_classifier(self.num_features, num_classes, pool_type=pool_type)
        self.fc = fc.to(next(self.parameters()))  # the stem's device and dtype
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last feature map and those at `indices` (the last n, a list, or None for all), or only the latter.

        `stop_early` skips the stages after the last index. `norm` has no effect: DenseNet's final norm is part of its
        last stage.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt: read {output_fmt!r}; only 'NCHW' is supported")
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        x = self.stem(x)
        features = [x]
        for stage in self.stages[:max_index] if stop_early else self.stages:
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            features.append(x)
        intermediates = [feature for i, feature in enumerate(features) if i in take_indices]
        return intermediates if intermediates_only else (x, intermediates)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) → last feature map (N, num_features, H / 8, W / 8)."""
        x = self.stem(x)
        return checkpoint_seq(self.stages, x, flatten=True) if self.grad_checkpointing else self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits (N, num_classes), or pooled features (N, head_hidden_size) with `pre_logits`."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
