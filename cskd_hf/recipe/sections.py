"""The sections of a recipe: every key with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=0.5)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
SplitName = Annotated[str, Field(description="a split's name")]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class DataSection(Section):
    """Images, batches and pairs."""

    dataset: str
    """A catalog name, a Hub id, or a folder: `split/class/*.jpg`, Parquet, or `save_to_disk` Arrow."""
    config_name: str | None = None
    """Configuration of the Hub dataset, if it has several."""
    revision: str | None = None
    """Branch, tag or commit of the Hub dataset; null: the catalog's, else main."""
    train_split: str | None = None
    """null: the catalog's, else `train`."""
    test_split: str | None = None
    """null: the catalog's, else `test`."""
    holdout: Share | SplitName | None = None
    """Images to fit the temperature on, excluded from training: a fraction of the training split, stratified and the
    same for every seed, or a split's name. null: the catalog's, else 0 (no temperature)."""
    image_column: str | None = None
    """null: the catalog's, else `image`."""
    label_column: str | None = None
    """null: the catalog's, else `label`."""
    batch_size: Count = 128
    """B, supervised images per step and process; CS-KD loads 2B images."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loader workers per process; 0 loads in the training process. auto: its share of the node's cores, at most 16."""
    drop_last: bool = False
    """Drop the short last batch of an epoch; the paper trains on it."""
    partner: Literal["any", "not_self"] = "any"
    """x′ is drawn from x's class with x itself (any, the paper) or without it (not_self)."""
    singleton: Literal["self", "error"] = "self"
    """A class with one training image, if `partner` is not_self: pair the image with itself, or stop."""
    on_corrupt: Literal["error", "skip"] = "error"
    """An unreadable image: stop (error), or count it, train on another of its class and do not evaluate it (skip)."""


class TransformSection(Section):
    """Bytes to pixels: `timm.data.create_transform`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width), pixels."""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """RandomResizedCrop: range of the crop's area, as a fraction of the image's."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """RandomResizedCrop: range of the crop's width / height."""
    crop_padding: Annotated[int, Field(ge=1)] | None = None
    """Instead of RandomResizedCrop: resize to `input_size`, pad by this many pixels, crop at random."""
    hflip: Probability = 0.5
    """Chance of a horizontal flip."""
    vflip: Probability = 0.0
    """Chance of a vertical flip."""
    color_jitter: NonNegative | None = None
    """Strength for brightness, contrast and saturation. null: none (the paper); timm's default is 0.4."""
    auto_augment: str | None = None
    """timm's policy string, for example `rand-m6-mstd0.5-inc1`; excludes `color_jitter`, except 3-Augment (`3a`)."""
    re_prob: Probability = 0.0
    """Random erasing: the chance that an image is erased; each view of a pair draws its own rectangles."""
    re_mode: Literal["const", "rand", "pixel"] = "const"
    """Fill with the mean (const), or with a normal colour around it per rectangle (rand) or per pixel (pixel)."""
    re_count: Count = 1
    """At most this many rectangles, which share the erased area."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """random: bilinear or bicubic per training image, bilinear for evaluation."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Evaluation: resize the short side to input / crop_pct, then crop the centre."""
    mean: tuple[float, float, float] | None = None
    """Of the RGB channels in [0, 1]. null: the pretrained weights', else the catalog's, else ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None
    """As `mean`."""

    @field_validator("auto_augment")
    @classmethod
    def _exclude_color_jitter(cls, policy: str | None, read: ValidationInfo) -> str | None:
        if policy is not None and "3a" not in policy and read.data.get("color_jitter") is not None:
            raise ValueError("null with color_jitter, which timm silently drops under a policy; write one of the two")
        return policy

    @field_validator("input_size")
    @classmethod
    def _rgb(cls, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if size[0] != 3 or min(size) < 1:
            raise ValueError("[3, height, width] in pixels; images are RGB")
        return size


class ModelSection(Section):
    """The network: `timm.create_model`."""

    model_name: str
    """A timm name, or a network of `cskd_hf.models.small`: preactresnet18_32px, densenet121_32px, resnet10, …"""
    pretrained: bool = False
    """Start from timm's pretrained weights; the paper trains from scratch."""
    num_classes: Count | None = None
    """null: the dataset's."""
    drop_rate: Probability | None = None
    """Dropout before the classifier. null, here and below: the network's default."""
    drop_path_rate: Probability | None = None
    """Stochastic depth."""
    global_pool: str | None = None
    """Pooling before the classifier, timm's name."""
    img_size: Count | None = None
    """Pixels; for transformers with a fixed grid."""
    zero_init_last: bool | None = None
    """Start each residual branch at zero, timm's default for ResNets; torchvision and the paper do not: false."""


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
    """Shape of the decay; none: a constant rate."""
    decay_milestones: tuple[Count, ...] = (90, 180, 270)
    """multistep: the rate is lower from each of these epochs on, counted from 1."""
    decay_epochs: Positive | None = None
    """step: epochs between drops."""
    decay_rate: Positive = 0.1
    """step, multistep: factor of each drop."""
    min_lr: NonNegative = 0.0
    """The rate at the end of cosine, tanh and poly."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the rate rises linearly."""
    warmup_lr: NonNegative = 1e-5
    """The rate at the start of the warm-up."""
    warmup_prefix: bool = False
    """Add the warm-up before `num_epochs` instead of spending some of them on it."""
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs after `num_epochs`, at the last rate."""
    step_on_epochs: bool = True
    """Change the rate once per epoch; false: at every update."""

    @property
    def total_epochs(self) -> int:
        """Epochs trained: timm adds the cooldown, and a prefixed warm-up, to `num_epochs`."""
        return self.num_epochs + self.cooldown_epochs + (self.warmup_epochs if self.warmup_prefix else 0)


class RunSection(Section):
    """The run folder, numerics, checkpoints and logging."""

    output_dir: str | None = None
    """null: runs/<recipe>-<method>-seed<seed>"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of weights, order, pairs and augmentation."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: the launcher's."""
    num_processes: Count | None = None
    """Processes the recipe is meant for; any other number is an error. null: any."""
    ddp_timeout: Count = 1800
    """Seconds before a collective that a rank never joins fails."""
    sync_bn: bool = False
    """BatchNorm statistics over all processes (torch's SyncBatchNorm); CUDA only."""
    max_hours: Positive | None = None
    """Checkpoint and exit with status 143 after this many hours; rerun the same command to resume."""
    gradient_accumulation_steps: Count = 1
    """Batches per update."""
    clip_grad: Positive | None = None
    """Maximum global L2 norm of the gradient; null: no clipping."""
    model_ema: bool = False
    """Average the weights (timm's ModelEmaV3); the average is evaluated and exported."""
    model_ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    """What remains of the average after an update."""
    model_ema_warmup: bool = True
    """Start with a short average that grows with the updates up to `model_ema_decay`; false: that decay throughout."""
    channels_last: bool = True
    """Memory layout of weights and images; faster on GPUs and CPUs."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time, the same step."""
    deterministic: bool = False
    """Deterministic CUDA kernels only, slower: reruns and resumed runs are bit-equal, as they always are on CPUs."""
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    """torch.compile of both forwards and the loss, or its mode."""
    val_interval: Count = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    checkpoint_steps: Count | None = None
    """Updates between checkpoints; null: one at the end of each epoch."""
    checkpoints_total_limit: Count = 2
    """Delete all but this many of the newest checkpoints."""
    resume: Literal["auto", "never", "force"] = "auto"
    """auto: resume from the newest checkpoint; force: even if the recipe changed; never: stop if there is a run."""
    logging_steps: Count = 50
    """Updates between readings of the loss for progress bar and trackers; each is a device sync."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers that get the metrics; each is a package to install."""
    hub_model_id: str | None = None
    """owner/name on the Hub, where the weights are published after training; null: not published."""
    hub_private_repo: bool = True
    """Create the repository private."""

    @field_validator("hub_model_id")
    @classmethod
    def _repository(cls, name: str | None) -> str | None:
        if name is not None:
            from huggingface_hub.utils import HFValidationError, validate_repo_id

            try:
                validate_repo_id(name)
            except HFValidationError as error:
                raise ValueError(f"owner/name ({' '.join(str(error).split())})") from None
            if name.count("/") != 1:
                raise ValueError("owner/name, where owner is a user or an organization of the Hub")
        return name
