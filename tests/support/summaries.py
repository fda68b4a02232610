"""The recipe, the environment and the summary of a run folder, for tests that do not train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.recipe.recipe import Recipe, parse_recipe
from cskd_hf.runs.folder import begin_run, open_run
from cskd_hf.runs.summary import (
    Calibration,
    DatasetSummary,
    MetricsSummary,
    MetricValues,
    ModelSummary,
    Summary,
    Throughput,
)


def make_recipe(folder: Path, method: str = "cskd", **run: Any) -> Recipe:
    return parse_recipe(
        {
            "data": {"dataset": "digits"},
            "model": {"model_name": "test_resnet"},
            "method": {"name": method},
            "optimizer": {"lr": 0.1},
            "scheduler": {"num_epochs": 2},
            "run": {"output_dir": str(folder), **run},
        }
    )


IMAGES = {"train": {"images": 150, "labels": "1234"}, "test": {"images": 1297, "labels": "5678"}}


def start(recipe: Recipe, num_processes: int = 1, images: Any = IMAGES) -> tuple[Path, Path | None, bool]:
    """Open and begin a run; folder, checkpoint and whether it is finished."""
    opened = open_run(recipe, images)
    if not opened.finished:
        begin_run(opened, recipe, images, num_processes)
    return opened[:3]


def metric_values(start: float = 10.0, **values: float | None) -> MetricValues:
    """`values`, and distinct numbers from `start` for all other metrics."""
    numbers = {name: start + index for index, name in enumerate(DEFINITIONS)}
    return MetricValues.model_validate(numbers | values)


def measured(metrics: MetricValues | dict[str, float | None]) -> dict[str, float]:
    """The metrics that are not None, which pytest.approx does not compare."""
    return {name: value for name, value in dict(metrics).items() if value is not None}


SUMMARY = Summary(
    recipe_hash="0123456789abcdef",
    seed=7,
    epochs=3,
    selection="last",
    selected=None,
    name="a-run",
    dataset=DatasetSummary(
        name="cifar100",
        num_classes=100,
        images={"train": 45_000, "test": 10_000, "holdout": 5_000},
        train_images_per_class=(450,) * 100,
        deep={},
    ),
    model=ModelSummary(
        model_name="resnet18_cskd",
        num_parameters=11_220_132,
        needs_cskd_hf=True,
        finetuned_from=None,
        finetuned_license=None,
        loaded=None,
    ),
    method={"name": "cskd", "temperature": 4.0, "loss_weight": 1.0},
    metrics=MetricsSummary(
        last=metric_values(10.0),
        temperature=1.4142,
        metrics_scaled=metric_values(30.0),
        calibration=Calibration(
            verdict="calibrated: logits divided by the temperature 1.4142, fitted on 5,000 hold-out images",
            temperature=1.4142,
            fitted=1.4142,
            low=1.38,
            high=1.45,
            images=5_000,
            different_images=4_998,
            nll=1.25,
            nll_scaled=1.125,
        ),
        class_errors=(10.0,) * 100,
    ),
    throughput=Throughput(
        images_per_second=2431.7,
        data_wait_share=0.021,
        peak_memory_bytes=3 * 2**30,
        train_seconds=8231.2,
        num_processes=8,
    ),
    skipped_images={"train": 1, "test": 0, "holdout": 0},
    notes=("1 unreadable image of the train split was skipped",),
)


def summary_without_holdout() -> Summary:
    metrics = SUMMARY.metrics.model_copy(update={"temperature": None, "metrics_scaled": None, "calibration": None})
    dataset = SUMMARY.dataset.model_copy(update={"images": {"train": 50_000, "test": 10_000}})
    return SUMMARY.model_copy(update={"metrics": metrics, "dataset": dataset})


ENVIRONMENT = {
    "cskd_hf": "0.1.0",
    "python": "3.10.99",
    "packages": {"torch": "2.6.0"},
    "git": {"commit": "0123456789", "dirty": False},
    "hardware": {"cpu": "a CPU", "torch_threads": 4, "accelerators": ["Fast GPU"] * 8},
    "num_processes": 8,
    "mixed_precision": "bf16",
    "command": "python -m cskd_hf.train recipe.yaml",
    "settings": {"data": {"dataset": "cifar100"}},
}
"""The result of `describe_environment`, shortened."""
