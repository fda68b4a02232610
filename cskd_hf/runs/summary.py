"""The summary and the recipe of a run folder: the one reader, writer and recipe diff."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cskd_hf.errors import UserError
from cskd_hf.files import write_json
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe, parse_recipe, recipe_hash
from cskd_hf.runs.environment import NAME as ENVIRONMENT
from cskd_hf.runs.selected import Selected

NAME = "summary.json"
PREVIOUS = "summary.previous.json"  # of a finished run that a forced resume continues, until it ends


class _Record(BaseModel):
    # Keys added by a later version are ignored.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class DatasetSummary(_Record):
    """The data of a run.

    `images` counts them per split, `holdout` only if there is one; `train_images_per_class` those of each class, in
    label order. `deep` has black and white of images deeper than 8 bits, by depth: {"16-bit": [0, 65535]}.
    """

    name: str
    num_classes: int
    images: dict[str, int]
    train_images_per_class: tuple[int, ...]
    deep: dict[str, tuple[float, float]]


class ModelSummary(_Record):
    """The exported network; `needs_cskd_hf` if timm alone does not know its architecture.

    `finetuned_from`, `finetuned_license` and `loaded` name the weights that training started from and say what of them
    was loaded; None for random weights.
    """

    model_name: str
    num_parameters: int
    needs_cskd_hf: bool
    finetuned_from: str | None
    finetuned_license: str | None
    loaded: str | None


class MetricValues(_Record):
    """The metrics that `cskd_hf.evaluation.metrics.DEFINITIONS` defines."""

    top1_error: float
    top5_error: float
    nll: float
    nll_refinement: float | None
    nll_calibration: float | None
    brier: float
    brier_refinement: float | None
    brier_calibration: float | None
    ece: float
    debiased_ece: float
    smooth_ece: float
    adaptive_ece: float
    classwise_ece: float
    aurc: float
    aurc_logit_norm: float
    augrc: float
    recall_at_1: float | None
    recall_at_2: float | None
    recall_at_4: float | None
    recall_at_8: float | None
    macro_error: float
    head_error: float | None
    medium_error: float | None
    tail_error: float | None


class Calibration(_Record):
    """What the hold-out set says about the temperature.

    Attributes:
        verdict: "calibrated: …" or "not calibrated: …, T = 1", the sentence that every command prints.
        temperature: divides the logits; None if the evidence does not support one.
        fitted: of maximum likelihood, used or not.
        low, high: ends of its 95 % interval; None for an end that the images leave open.
        images, different_images: of the hold-out set; different are images whose predictions differ.
        nll, nll_scaled: of the hold-out set, with the logits as trained and divided by `fitted`.
    """

    verdict: str
    temperature: float | None
    fitted: float
    low: float | None
    high: float | None
    images: int
    different_images: int
    nll: float
    nll_scaled: float


class MetricsSummary(_Record):
    """Results on the test split; `metrics_scaled` has the logits divided by the temperature, None without one.

    `last` is of the exported weights: the last epoch's, or those that `run.selection` chose.
    `calibration` is None without a hold-out set. `class_errors` has the top-1 error of each class, in label order, in
    percent, None without test images.
    """

    last: MetricValues
    temperature: float | None
    metrics_scaled: MetricValues | None
    calibration: Calibration | None
    class_errors: tuple[float | None, ...]

    @property
    def verdict(self) -> str:
        """Whether the probabilities are calibrated, and why not."""
        if self.calibration is None:
            return "not calibrated: no temperature was fitted, the run had no hold-out set (data.holdout: 0)"
        return self.calibration.verdict


class Throughput(_Record):
    """The cost of training; rates count all ranks, `peak_memory_bytes` is None without an accelerator."""

    images_per_second: float
    data_wait_share: float
    peak_memory_bytes: int | None
    train_seconds: float
    num_processes: int


class Summary(_Record):
    """`summary.json` of a finished run.

    `epochs` are the recipe's. `selected` is None if the hold-out set decided nothing.
    """

    recipe_hash: str
    seed: int
    epochs: int
    selection: Literal["last", "best_holdout"]
    selected: Selected | None
    name: str
    dataset: DatasetSummary
    model: ModelSummary
    method: dict[str, Any]
    metrics: MetricsSummary
    throughput: Throughput
    skipped_images: dict[str, int]
    notes: tuple[str, ...]

    @property
    def tested_images(self) -> int:
        """How many images the metrics are of: the test split's readable ones."""
        return self.dataset.images["test"] - self.skipped_images["test"]

    @property
    def epochs_trained(self) -> str:
        """In words: "90", or "12 of 90" if training stopped early."""
        if self.selected is None or self.selected.epochs_trained == self.epochs:
            return str(self.epochs)
        return f"{self.selected.epochs_trained} of {self.epochs}"

    @property
    def epoch(self) -> int:
        """The epoch of the exported weights, counted from 1."""
        return self.epochs if self.selected is None else self.selected.epoch

    @property
    def which_epoch(self) -> str:
        """The same for headings."""
        return "last epoch" if self.selected is None else f"epoch {self.epoch} of {self.epochs}"

    def metric(self, name: str) -> float | None:
        """A metric of the exported weights; `ece_scaled` is `ece` with the fitted temperature."""
        values = self.metrics.metrics_scaled if name.endswith("_scaled") else self.metrics.last
        return None if values is None else dict(values)[name.removesuffix("_scaled")]


def read_summary(folder: Path, recipe: Recipe | None = None) -> Summary:
    """The summary of a finished run; it must carry the hash of `recipe`, the folder's own.

    Raises:
        UserError: the file is missing, truncated, of another version, or not of this recipe.
    """
    path = folder / NAME
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(
            f"{path}: {key}{': ' if key else ''}{first['msg']}; the file is truncated or of another version"
        ) from None
    if recipe is not None and summary.recipe_hash != recipe_hash(recipe):
        raise UserError(
            f"{path}: recipe_hash is {summary.recipe_hash}, but recipe.yaml in that folder has {recipe_hash(recipe)}: "
            "one was edited or written by another version; restore it, or train into another folder"
        )
    return summary


def write_summary(folder: Path, summary: Summary) -> None:
    """Write `summary.json`, which marks the run as finished."""
    write_json(folder / NAME, summary.model_dump(mode="json"))
    (folder / PREVIOUS).unlink(missing_ok=True)


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        UserError: the file is missing, or of a version that this one cannot read.
    """
    path = folder / "recipe.yaml"
    return parse_recipe(yaml_io.read(path)[0], source=str(path))


def is_untrained(folder: Path) -> bool:
    """Whether the run there has no results yet, so that another recipe may replace it: one that fits into memory."""
    results = ("checkpoints", "metrics.jsonl", NAME, PREVIOUS)
    return (folder / ENVIRONMENT).is_file() and not any((folder / name).exists() for name in results)
