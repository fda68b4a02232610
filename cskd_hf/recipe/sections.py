"""The sections of a recipe: every key with its type, range, default and meaning."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from cskd_hf.recipe.image_sections import TRANSFORM_DEFAULTS as TRANSFORM_DEFAULTS
from cskd_hf.recipe.image_sections import DataSection as DataSection
from cskd_hf.recipe.image_sections import TransformSection as TransformSection
from cskd_hf.recipe.image_sections import of_channels as of_channels
from cskd_hf.recipe.run_section import SELECTION_METRICS as SELECTION_METRICS
from cskd_hf.recipe.run_section import RunSection as RunSection
from cskd_hf.recipe.section import Count, NonNegative, Positive, Probability, Section
from cskd_hf.recipe.section import fill as fill


class ModelSection(Section):
    """The network: `timm.create_model`."""

    model_name: str
    """A timm name, or a network of `cskd_hf.models.small`: preactresnet18_32px, densenet121_32px, resnet10, …; or the
    network of a config.json: `hf-hub:OWNER/NAME` or `local-dir:FOLDER`."""
    pretrained: bool = False
    """Start from the pretrained weights that `model_name` names; the paper trains from scratch."""
    checkpoint: str | None = None
    """Start from the weights in this file (safetensors or .pth) of the same architecture instead."""
    freeze: tuple[str, ...] | str = ()
    """Parts of the network that do not train, by the start of their names: `[stem, stages.0]`. Their BatchNorm uses its
    running statistics. backbone: all but the classifier, a linear probe."""
    freeze_epochs: Annotated[int, Field(ge=0)] = 0
    """Train the classifier (and a method's own heads) alone in the first epochs, then everything but `freeze`."""
    num_classes: Count | None = None
    """null: the dataset's."""
    drop_rate: Probability | None = None
    """Dropout before the classifier. null, here and below: the network's default."""
    drop_path_rate: Probability | None = None
    """Stochastic depth."""
    global_pool: str | None = None
    """Pooling before the classifier, timm's name."""
    img_size: Count | tuple[Count, Count] | None = None
    """Pixels, or [height, width]; for transformers with a fixed grid. As in `transform.input_size`."""
    in_chans: Literal[1, 3, 4] | None = None
    """Channels of an image. null: those of `transform.input_size`."""
    zero_init_last: bool | None = None
    """Start each residual branch at zero, timm's default for ResNets; torchvision and the paper do not: false."""

    @field_validator("model_name")
    @classmethod
    def _one_spelling(cls, name: str) -> str:
        return re.sub("^hf_hub:", "hf-hub:", name.removeprefix("timm/"))

    @property
    def keywords(self) -> dict[str, Any]:
        """The keys that go to the network's constructor."""
        own = {"model_name", "pretrained", "checkpoint", "freeze", "freeze_epochs", "num_classes"}
        return self.model_dump(exclude=own, exclude_none=True)

    @property
    def from_weights(self) -> bool:
        """Whether training starts from weights, not at random."""
        return self.pretrained or self.checkpoint is not None

    def without_weights(self) -> ModelSection:
        """The same network with random weights."""
        return self.model_copy(update={"pretrained": False, "checkpoint": None})


class OptimizerSection(Section):
    """The optimizer: `timm.optim.create_optimizer_v2`."""

    opt: str = "momentum"
    """timm's name: `momentum` is SGD with momentum (the paper), `sgd` is Nesterov's."""
    lr_base: Positive | None = None
    """Instead of `lr`: the rate is lr_base × global batch / 256, where the global batch is batch_size × processes ×
    gradient_accumulation_steps. Linear for every optimizer; timm takes a square root for Adam and relatives."""
    lr: Positive | None = Field(default=None, validate_default=True)
    """Learning rate, used as written whatever the global batch."""
    weight_decay: NonNegative = 0.0
    """The paper: 1e-4."""
    momentum: NonNegative = 0.9
    """Of SGD and its relatives."""
    filter_bias_and_bn: bool = True
    """Exempt biases and norms from weight decay, timm's default. The paper decays every parameter: false."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one below; null: none."""
    layer_decay_min_scale: Probability | None = None
    """Lower bound of the factors of `layer_decay`; null: 0."""

    @field_validator("layer_decay_min_scale")
    @classmethod
    def _of_layer_decay(cls, value: float | None, read: ValidationInfo) -> float | None:
        if value is not None and read.data.get("layer_decay", 1) is None:
            raise ValueError("null without layer_decay, whose factors it bounds; write one, or leave it out")
        return value

    betas: tuple[NonNegative, NonNegative] | None = None
    """Adam's; null, here and for eps: the optimizer's default."""
    eps: Positive | None = None
    """Adam's term for numerical stability."""
    fused: bool | None = None
    """One kernel for the whole update; null: if `opt` is torch's SGD, Adam or AdamW."""

    @field_validator("lr")
    @classmethod
    def _one_rate(cls, lr: float | None, read: ValidationInfo) -> float | None:
        base = read.data.get("lr_base")
        if "lr_base" in read.data and lr is None and base is None:
            raise ValueError("optimizer.lr=0.1, or lr_base, which scales with the global batch")
        if lr is not None and base is not None:
            raise ValueError("null with lr_base; write optimizer.lr=null, or optimizer.lr_base=null")
        return lr

    def scaled_lr(self, global_batch_size: int) -> tuple[float, str]:
        """The learning rate of a run, and its derivation."""
        if self.lr is not None:
            return self.lr, "as written"
        assert self.lr_base is not None
        return self.lr_base * global_batch_size / 256, f"= lr_base {self.lr_base:g} x {global_batch_size:,} / 256"


class SchedulerSection(Section):
    """The learning rate over time: `timm.scheduler.create_scheduler_v2`."""

    num_epochs: Count
    """Without `cooldown_epochs`, and without a warm-up under `warmup_prefix`."""
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "none"] = "cosine"
    """Shape of the decay; none: a constant rate, after the warm-up if there is one."""
    decay_milestones: tuple[Count, ...] = (90, 180, 270)
    """multistep: the rate is lower from each of these epochs on, counted from 1."""
    decay_epochs: Positive | None = None
    """step: epochs between drops; null: timm's 90."""
    decay_rate: Positive = 0.1
    """step, multistep: factor of each drop; poly: the power, where 1 is a line and 0.1 stays high until the end."""
    min_lr: NonNegative = 0.0
    """The rate at the end of cosine, tanh and poly."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the rate rises linearly."""
    warmup_lr: NonNegative = 1e-5
    """The rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Add the warm-up before `num_epochs` instead of spending some of them on it."""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs after `num_epochs`: cosine, tanh and poly stay at `min_lr`, which must then be above 0; step and multistep
    continue."""
    step_on_epochs: bool = True
    """Change the rate once per epoch; false: at every update."""

    @property
    def keywords(self) -> dict[str, Any]:
        """For `create_scheduler_v2`, whose `none` drops warm-up and layer decay, and whose milestones must rise."""
        settings = self.model_dump(exclude_none=True) | {"decay_milestones": sorted(self.decay_milestones)}
        return settings | ({"sched": "multistep", "decay_milestones": []} if self.sched == "none" else {})

    @property
    def total_epochs(self) -> int:
        """Epochs trained: timm adds the cooldown, and a prefixed warm-up, to `num_epochs`."""
        return self.num_epochs + self.cooldown_epochs + (self.warmup_epochs if self.warmup_prefix else 0)
