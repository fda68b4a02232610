"""Run folders as training leaves them, as far as tables read them, written without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from summaries import SUMMARY, metric_values

from cskd_hf.paper.blocks import select
from cskd_hf.paper.experiments import Run, RunKey, Setup, runs_of
from cskd_hf.recipe.recipe import Recipe, dump_recipe, recipe_hash
from cskd_hf.runs.summary import MetricsSummary, write_summary


def some_runs(root: Path, *tables: str, seeds: Sequence[int] = (0, 1, 2), **chosen: Sequence[str]) -> dict[RunKey, Run]:
    return runs_of(select(tables, **chosen), seeds, Setup(root, {}))


CUB: dict[str, list[str]] = {"datasets": ["cub200"], "models": ["resnet18"]}


def one_run(root: Path, method: str = "cskd", seed: int = 0) -> Run:
    (run,) = some_runs(root, "table1", methods=[method], seeds=[seed], **CUB).values()
    return run


def as_trained(run: Run) -> Recipe:
    """The recipe with what training alone knows."""
    return run.expected.replace(model={"num_classes": 200}, run={"mixed_precision": "bf16"})


def write_unfinished(run: Run, epochs: int) -> None:
    run.folder.mkdir(parents=True)
    dump_recipe(as_trained(run), run.folder / "recipe.yaml")
    lines = [json.dumps({"epoch": epoch, "train/loss": 1.0}) + "\n" for epoch in range(epochs)]
    (run.folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")


def write_finished(
    run: Run,
    top1_error: float,
    *,
    scaled_ece: float | None = None,
    num_processes: int = 1,
    speed: float = 100.0,
    **more: float,
) -> None:
    """`more` are other metrics of the last epoch."""
    write_unfinished(run, run.expected.scheduler.num_epochs)
    values = {"top1_error": top1_error, "top5_error": 20.0, "nll": 1.0, "ece": 10.0, "recall_at_1": 50.0, **more}
    metrics = MetricsSummary(
        last=metric_values(**values),
        temperature=None if scaled_ece is None else 1.5,
        metrics_scaled=None if scaled_ece is None else metric_values(**{**values, "ece": scaled_ece}),
    )
    throughput = SUMMARY.throughput.model_copy(update={"images_per_second": speed, "num_processes": num_processes})
    changes = {"recipe_hash": recipe_hash(as_trained(run)), "seed": run.key.seed}
    write_summary(run.folder, SUMMARY.model_copy(update={**changes, "metrics": metrics, "throughput": throughput}))
