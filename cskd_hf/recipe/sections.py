"""The sections of a recipe: every setting with its type, range, default and meaning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

Share = Annotated[float, Field(ge=0, le=0.5)]
Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A frozen group of settings; a key it does not know is an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class DataSection(Section):
    """Which images, and how they are grouped into batches."""

    dataset: str
    """A name of the catalog, a Hub id, or a folder: `split/class/*.jpg`, Parquet, or `save_to_disk` Arrow."""
    config_name: str | None = None
    """The Hub set's configuration, where it has several."""
    revision: str | None = None
    """The Hub set's branch, tag or commit."""
    train_split: str | None = None
    """null: the catalog's, else `train`."""
    test_split: str | None = None
    """null: the catalog's, else `test`."""
    holdout: Share | str | None = None
    """Images kept out of training to fit the temperature on: a share of the training split, stratified, the same for
    every seed; or the name of a split; null: the catalog's, else 0 (no temperature)."""
    image_column: str | None = None
    """null: the catalog's, else `image`."""
    label_column: str | None = None
    """null: the catalog's, else `label`."""
    batch_size: Count = 128
    """B, the supervised images a step on each process. CS-KD loads 2B."""
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """Loaders on each process; 0 loads in the training process; auto: its share of the node's cores, at most 16."""
    drop_last: bool = False
    """Drop the short last batch of an epoch; the paper keeps it."""
    partner: Literal["any", "not_self"] = "any"
    """x′ is any image of x's class, x itself included (the paper), or any other one."""
    singleton: Literal["self", "error"] = "self"
    """A class with one training image: pair it with itself, or stop, where `partner` is `not_self`."""
    on_corrupt: Literal["error", "skip"] = "error"
    """An unreadable image: stop and name it; or train on another of its class, leave it out of tests, and count it."""


class TransformSection(Section):
    """Bytes to pixels, `timm.data.create_transform`."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    """(channels, height, width)"""
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    """RandomResizedCrop: the crop's share of the area."""
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    """RandomResizedCrop: the crop's aspect ratio."""
    crop_padding: Annotated[int, Field(ge=1)] | None = None
    """Resize to `input_size`, pad by so many pixels, crop back at random, instead of RandomResizedCrop."""
    hflip: Probability = 0.5
    vflip: Probability = 0.0
    color_jitter: NonNegative | None = None
    """timm's own default is 0.4; the paper has none."""
    auto_augment: str | None = None
    """timm's policy string, such as `rand-m6-mstd0.5-inc1`."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bilinear"
    """`random` is bilinear or bicubic in training, bilinear in tests."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Test: resize the short side to input / crop_pct, then crop the centre."""
    mean: tuple[float, float, float] | None = None
    """null: the pretrained weights', else the catalog's, else ImageNet's."""
    std: tuple[Positive, Positive, Positive] | None = None

    @field_validator("auto_augment")
    @classmethod
    def _not_both(cls, policy: str | None, read: ValidationInfo) -> str | None:
        if policy is not None and "3a" not in policy and read.data.get("color_jitter") is not None:
            raise ValueError(
                "no policy beside color_jitter, which timm leaves out without a word; write one of the two"
            )
        return policy

    @field_validator("input_size")
    @classmethod
    def _rgb(cls, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if size[0] != 3 or min(size) < 1:
            raise ValueError("images are RGB: write [3, height, width] with positive sizes")
        return size


class ModelSection(Section):
    """The backbone, `timm.create_model`."""

    model_name: str
    pretrained: bool = False
    num_classes: Count | None = None
    """null: the data's."""
    drop_rate: Probability | None = None
    drop_path_rate: Probability | None = None
    global_pool: str | None = None
    img_size: Count | None = None
    """For transformers with a fixed grid."""
    zero_init_last: bool | None = None
    """timm's ResNets start each residual branch at zero unless this is false; torchvision's and the paper's do not."""


class OptimizerSection(Section):
    """`timm.optim.create_optimizer_v2`."""

    opt: str = "momentum"
    """timm's `sgd` is Nesterov's; plain SGD with momentum is called `momentum`."""
    lr_base: Positive | None = None
    """Instead of `lr`, timm's linear rule: lr_base × global batch / 256, that batch being batch_size × processes ×
    gradient_accumulation_steps supervised images. (timm takes the square root for Adam and its kin; this does not.)"""
    lr: Positive | None = Field(default=None, validate_default=True)
    """Of the global batch as it is run; nothing scales it."""
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.9
    filter_bias_and_bn: bool = True
    """Exempt biases and norms from weight decay: timm's default. The paper decays every parameter: false."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    betas: tuple[NonNegative, NonNegative] | None = None
    eps: Positive | None = None
    fused: bool | None = None
    """One kernel for the whole update; null: where `opt` is torch's own SGD, Adam or AdamW, which have one."""

    @field_validator("lr")
    @classmethod
    def _one_rate(cls, lr: float | None, read: ValidationInfo) -> float | None:
        if "lr_base" in read.data and (lr is None) == (read.data["lr_base"] is None):
            raise ValueError("lr, or lr_base, which the global batch scales")
        return lr

    def scaled_lr(self, global_batch_size: int) -> tuple[float, str]:
        """The rate of a run, and how it came about."""
        if self.lr is not None:
            return self.lr, "as written"
        assert self.lr_base is not None
        return self.lr_base * global_batch_size / 256, f"= lr_base {self.lr_base:g} x {global_batch_size:,} / 256"


class SchedulerSection(Section):
    """`timm.scheduler.create_scheduler_v2`."""

    num_epochs: Count
    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "none"] = "cosine"
    decay_milestones: tuple[Count, ...] = (90, 180, 270)
    """timm acts one epoch early: milestone m lowers the rate of the 0-based epoch m − 1."""
    decay_epochs: Positive | None = None
    decay_rate: Positive = 0.1
    min_lr: NonNegative = 0.0
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative = 1e-5
    warmup_prefix: bool = False
    cooldown_epochs: Annotated[int, Field(ge=0)] = 0
    step_on_epochs: bool = True
    """false: move the rate at every update."""

    @property
    def total_epochs(self) -> int:
        """Epochs trained: timm's `num_epochs`, to which it adds the cool-down and a warm-up that comes before."""
        return self.num_epochs + self.cooldown_epochs + (self.warmup_epochs if self.warmup_prefix else 0)


class RunSection(Section):
    """Where, how exactly, and what is kept."""

    output_dir: str | None = None
    """null: runs/<recipe>-<method>-seed<seed>"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: what `accelerate launch` was told."""
    num_processes: Count | None = None
    """Processes the recipe is meant for; another number found is refused. null: whatever is found."""
    ddp_timeout: Count = 1800
    """Seconds that a process waits for the others before it gives up."""
    sync_bn: bool = False
    """BatchNorm over the images of all processes, on CUDA (timm's converter, torch's SyncBatchNorm)."""
    max_hours: Positive | None = None
    """Write a checkpoint and stop, with status 143, so long after the start; the same command goes on."""
    gradient_accumulation_steps: Count = 1
    clip_grad: Positive | None = None
    """Largest global L2 norm of the gradient; null: no clipping."""
    model_ema: bool = False
    """Keep timm's running average of the weights (ModelEmaV3); it is what is evaluated and exported."""
    model_ema_decay: Annotated[float, Field(gt=0, lt=1)] = 0.9998
    model_ema_warmup: bool = False
    channels_last: bool = True
    grad_checkpointing: bool = False
    """Recompute activations in the backward instead of keeping them: less memory, a third more time, the same step."""
    deterministic: bool = False
    """Use only deterministic CUDA kernels: two runs, or a run and its resumption, are then bit-equal. Slower. On a
    CPU they are equal anyway."""
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    """torch.compile of the whole objective, both forwards and the loss; or its mode."""
    val_interval: Count = 1
    """Epochs between evaluations for the curves; the last epoch is always evaluated."""
    checkpoint_steps: Count | None = None
    """Updates between checkpoints; null: one at the end of each epoch only."""
    checkpoints_total_limit: Count = 2
    resume: Literal["auto", "never", "force"] = "auto"
    """auto: go on where the folder's newest checkpoint stands; force: also with a changed recipe; never: refuse a
    folder that holds a run."""
    logging_steps: Count = 50
    """Updates between readings of the loss for the progress bar and the trackers; each is a wait for the device."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    hub_model_id: str | None = None
    """owner/name on the Hub, to which the weights are published when training ends; null: nowhere."""
    hub_private_repo: bool = True
    """A repository made for them is private."""

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
                raise ValueError("owner/name, owner being a user or an organization of the Hub")
        return name
