"""A complete `summary.json`, for tests that read one without training."""

from __future__ import annotations

from cskd_hf.evaluation.metrics import METRICS
from cskd_hf.runs.summary import (
    DatasetSummary,
    MetricsSummary,
    MetricValues,
    ModelSummary,
    Summary,
    Throughput,
)


def metric_values(start: float = 10.0, **values: float | None) -> MetricValues:
    """`start`, `start + 1`, ... for the metrics not named, so that each has a value of its own."""
    numbers = {name: start + index for index, name in enumerate(METRICS)}
    return MetricValues.model_validate(numbers | values)


SUMMARY = Summary(
    recipe_hash="0123456789abcdef",
    seed=7,
    epochs=3,
    selection="last",
    name="a-run",
    dataset=DatasetSummary(
        name="cifar100", num_classes=100, images={"train": 45_000, "test": 10_000, "holdout": 5_000}
    ),
    model=ModelSummary(model_name="resnet18_cskd", num_parameters=11_220_132, needs_cskd_hf=True),
    method={"name": "cskd", "temperature": 4.0, "loss_weight": 1.0},
    metrics=MetricsSummary(last=metric_values(10.0), temperature=1.4142, metrics_scaled=metric_values(30.0)),
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
    metrics = SUMMARY.metrics.model_copy(update={"temperature": None, "metrics_scaled": None})
    dataset = SUMMARY.dataset.model_copy(update={"images": {"train": 50_000, "test": 10_000}})
    return SUMMARY.model_copy(update={"metrics": metrics, "dataset": dataset})
