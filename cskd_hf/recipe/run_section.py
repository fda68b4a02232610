"""The section `run`: where a run is written, its numerics, and how it is stopped, selected and tracked."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, field_validator

from cskd_hf.errors import one_line
from cskd_hf.recipe.section import Count, Positive, Section

SELECTION_METRICS = {"top1_error": "top-1 error", "nll": "NLL", "refinement_loss": "refinement loss"}


class RunSection(Section):
    """The run folder, numerics, checkpoints and logging."""

    output_dir: str | None = None
    """null: runs/<dataset>_<recipe>-<method>-seed<seed>"""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of weights, order, pairs and augmentation."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """null: the launcher's. fp16 needs a GPU."""
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
    """Weight of the old average in each update."""
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
    selection: Literal["last", "best_holdout"] = "last"
    """The epoch whose weights are tested and exported: the last, or the best one on the hold-out set."""
    selection_metric: Literal["top1_error", "nll", "refinement_loss"] = "refinement_loss"
    """The metric that the best epoch minimises. refinement_loss: NLL after fitting a temperature (arXiv:2501.19195)."""
    early_stopping_patience: Count | None = None
    """Stop training after this many evaluations without a better `selection_metric`; null: train every epoch."""
    checkpoint_steps: Count | None = None
    """Updates between checkpoints; null: one at the end of each epoch."""
    checkpoints_total_limit: Count = 2
    """Delete all but this many of the newest checkpoints."""
    resume: Literal["auto", "never", "force"] = "auto"
    """auto: resume from the newest checkpoint; force: even if the recipe changed; never: stop if there is a run."""
    logging_steps: Count = 50
    """Updates between readings of the loss for progress bar and trackers; each is a device sync."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers of the metrics, each a package to install; a resumed run continues its record in project cskd_hf."""
    hub_model_id: str | None = None
    """owner/name on the Hub, where the weights are published after training; null: not published."""
    hub_private_repo: bool = True
    """Create the repository private."""
    hub_license: str | None = None
    """Licence of the published weights, of the Hub's list; null: by the terms of the data, if they are known."""

    @property
    def uses_holdout(self) -> bool:
        """Whether the hold-out set decides which weights a run ends with."""
        return self.selection == "best_holdout" or self.early_stopping_patience is not None

    @property
    def extra_weights(self) -> int:
        """Copies of the network in a checkpoint besides the trained one: a moving average, the best epoch's."""
        return self.model_ema + (self.selection == "best_holdout")

    def num_evaluated(self, epochs: int, holdout: int, test: int) -> int:
        """Images that a training evaluates: one split every `val_interval` epochs, and every split at the end."""
        return math.ceil(epochs / self.val_interval) * (holdout or test) + holdout + test

    @property
    def chosen_epoch(self) -> str:
        """Which epoch's weights are the result, for captions."""
        metric = SELECTION_METRICS[self.selection_metric]
        stopped = "" if self.early_stopping_patience is None else f", with early stopping by hold-out {metric}"
        return (f"epoch with the best hold-out {metric}" if self.selection != "last" else "last epoch") + stopped

    @field_validator("hub_model_id")
    @classmethod
    def _repository(cls, name: str | None) -> str | None:
        if name is not None:
            check_repository(name)
        return name


def check_repository(name: str) -> None:
    """Raises ValueError, with what to write instead, unless `name` is a legal repository of the Hub."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(f"owner/name ({one_line(error)})") from None
    if "/" not in name:
        raise ValueError(f"OWNER/{name}, where OWNER is your user name or an organization on the Hub")
