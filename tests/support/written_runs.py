"""Run folders with everything that the tables read, written without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from summaries import SUMMARY, metric_values, summary_without_holdout

from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run, Setup, at_equal_compute, runs_of
from cskd_hf.paper.selection import select
from cskd_hf.recipe.recipe import Recipe, dump_recipe, recipe_hash
from cskd_hf.runs.summary import write_summary

CUB = {"datasets": ["cub200"], "models": ["resnet18"]}
ONE_RUN = ["table1", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd", "--seeds", "0"]


def some_runs(root: Path, *tables: str, seeds: Sequence[int] = (0, 1, 2), **chosen: Sequence[str]) -> dict[RunKey, Run]:
    setup = Setup(root, {})
    return runs_of(at_equal_compute(select(tables, **chosen), setup), seeds, setup)


def one_run(root: Path, method: str = "cskd", overrides: Sequence[str] = (), data: str | None = None) -> Run:
    """Seed 0 of ResNet-18 on CUB-200."""
    setup = Setup(root, {} if data is None else {"cub200": data}, tuple(overrides))
    (run,) = runs_of(select(["table1"], methods=[method], **CUB), [0], setup).values()
    return run


def as_trained(run: Run, mixed_precision: str = "bf16") -> Recipe:
    """The recipe with the settings that training fills in."""
    splits = {
        "train_split": run.expected.data.train_split or "train",
        "test_split": run.expected.data.test_split or "test",
    }
    return run.expected.replace(data=splits, model={"num_classes": 200}, run={"mixed_precision": mixed_precision})


def write_unfinished(run: Run, epochs: int, mixed_precision: str = "bf16") -> None:
    run.folder.mkdir(parents=True)
    dump_recipe(as_trained(run, mixed_precision), run.folder / "recipe.yaml")
    lines = [json.dumps({"epoch": epoch, "train/loss": 1.0}) + "\n" for epoch in range(epochs)]
    (run.folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def write_finished(
    run: Run,
    top1_error: float,
    *,
    scaled_ece: float | None = None,
    num_processes: int = 1,
    train_images: int | None = None,
    test_images: int | None = None,
    mixed_precision: str = "bf16",
    speed: float = 100.0,
    **metrics: float,
) -> None:
    """Write a finished run; `metrics` are further metrics of its last epoch."""
    write_unfinished(run, run.expected.scheduler.num_epochs, mixed_precision)
    values = {"top1_error": top1_error, "top5_error": 20.0, "nll": 1.0, "ece": 10.0, "recall_at_1": 50.0, **metrics}
    scaled = None if scaled_ece is None else metric_values(**{**values, "ece": scaled_ece})
    before = (summary_without_holdout() if scaled is None else SUMMARY).metrics
    results = before.model_copy(update={"last": metric_values(**values), "metrics_scaled": scaled})
    throughput = SUMMARY.throughput.model_copy(update={"images_per_second": speed, "num_processes": num_processes})
    images = SUMMARY.dataset.images | {
        "train": train_images or run.size.train,
        "test": test_images or run.size.test,
    }
    dataset = SUMMARY.dataset.model_copy(update={"images": images})
    changes = {"recipe_hash": recipe_hash(as_trained(run, mixed_precision)), "seed": run.key.seed, "dataset": dataset}
    write_summary(run.folder, SUMMARY.model_copy(update={**changes, "metrics": results, "throughput": throughput}))
