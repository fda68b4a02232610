"""How long missing runs will take: from the throughput of finished ones, else from a few steps on blank images.

Device hours = processes × hours, as though a run's processes shared its work without loss. An evaluated image is
counted as a third of a trained one, which is what a forward is of forward and backward.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run, RunKey
from cskd_hf.paper.find import Found
from cskd_hf.recipe.catalog import CATALOG, CatalogEntry
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.summary import read_recipe, read_summary

# A CPU is as fast on few images as on many, and need not hold 512 of them.
_CPU_BATCH = 8


class Rate(NamedTuple):
    """Supervised images a second on one device, and where the number comes from."""

    images_per_second: float
    source: str


@dataclass(frozen=True)
class Measured:
    """The throughput of a finished run."""

    folder: Path
    recipe: Recipe
    images_per_second: float
    num_processes: int


class _Work(NamedTuple):
    """What a probe's time depends on."""

    model_name: str
    input_size: tuple[int, int, int]
    batch_size: int
    method: str


def _work(recipe: Recipe) -> _Work:
    return _Work(recipe.model.model_name, recipe.transform.input_size, recipe.data.batch_size, str(recipe.method.name))


def measured_runs(root: Path) -> list[Measured]:
    """Every finished run below a folder that this version can read."""
    measured = []
    for path in sorted(root.glob("*/summary.json")):
        try:
            recipe = read_recipe(path.parent)
            throughput = read_summary(path.parent, recipe).throughput
        except UserError:
            continue  # of no use here; where a table needs it, the table says so
        measured.append(Measured(path.parent, recipe, throughput.images_per_second, throughput.num_processes))
    return measured


def from_finished(run: Run, measured: Iterable[Measured]) -> Rate | None:
    """The median of runs of the same images, network and method; else of runs as large on other images."""
    expected, work = run.expected, _work(run.expected)
    same_size = [each for each in measured if each.recipe.transform.input_size == expected.transform.input_size]
    if expected.run.mixed_precision is not None:
        same_size = [each for each in same_size if each.recipe.run.mixed_precision == expected.run.mixed_precision]
    nearest = [
        each
        for each in same_size
        if each.recipe.data.dataset == expected.data.dataset
        and each.recipe.model.model_name == expected.model.model_name
        and each.recipe.method.name == expected.method.name
    ] or [each for each in same_size if _work(each.recipe) == work]
    if not nearest:
        return None
    rate = statistics.median(each.images_per_second / each.num_processes for each in nearest)
    others = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
    return Rate(rate, f"finished {nearest[0].folder.name}{others}")


def device_hours(run: Run, found: Found, rate: Rate) -> float:
    """What is left of a run, on one device."""
    recipe, entry = run.expected, CATALOG[run.key.dataset]
    train, watched = entry.num_images[entry.train_split], entry.num_images[entry.test_split]
    tested = watched
    if isinstance(recipe.data.holdout, str):
        watched = entry.num_images[recipe.data.holdout]
    elif recipe.data.holdout:
        watched = round(train * recipe.data.holdout)
        train -= watched
    epochs = recipe.scheduler.total_epochs - found.epochs
    evaluated = watched * math.ceil(epochs / recipe.run.val_interval) + tested
    return (train * epochs + evaluated / 3) / rate.images_per_second / 3600


def estimate(runs: Mapping[RunKey, Run], missing: Iterable[RunKey], root: Path) -> dict[RunKey, Rate]:
    """A rate for each missing run, probing what no finished run tells of; progress on stderr."""
    measured = measured_runs(root)
    rates: dict[RunKey, Rate] = {}
    unknown: dict[_Work, list[RunKey]] = {}
    for key in missing:
        rate = from_finished(runs[key], measured)
        if rate is None:
            unknown.setdefault(_work(runs[key].expected), []).append(key)
        else:
            rates[key] = rate
    for number, (work, keys) in enumerate(unknown.items(), start=1):
        size = "×".join(map(str, work.input_size[1:]))
        told = f"probe {number} of {len(unknown)}: {work.model_name}, {size}, batch {work.batch_size}, {work.method}"
        print(told, file=sys.stderr, flush=True)
        run = runs[keys[0]]
        rates |= dict.fromkeys(keys, probe(run, None if run.teacher is None else runs[run.teacher]))
    return rates


def probe(run: Run, teacher: Run | None) -> Rate:
    """Time forward, backward and update of the run's own objective on blank images, without loading any.

    Args:
        teacher: of a distilled run; a network like it, with random weights, stands in for it.
    """
    import torch

    from cskd_hf.engine.build import build_objective
    from cskd_hf.engine.optimizer import create_optimizer
    from cskd_hf.methods.base import Experiment

    recipe, entry = run.expected, CATALOG[run.key.dataset]
    assert recipe.transform.mean is not None
    assert recipe.transform.std is not None
    class_names = tuple(f"class {number}" for number in range(entry.num_classes))
    experiment = Experiment(
        entry.num_images[entry.train_split],
        recipe.scheduler.total_epochs,
        class_names,
        recipe.transform.mean,
        recipe.transform.std,
    )
    recipe = recipe.replace(model={"pretrained": False})
    with tempfile.TemporaryDirectory() as place:
        if teacher is not None:
            _write_blank_teacher(teacher.expected, class_names, Path(place) / "model")
            recipe = recipe.replace(method={"teacher": place})
        objective = build_objective(recipe, experiment)
    cuda = torch.cuda.is_available()
    objective.to("cuda" if cuda else "cpu")
    lr, _ = recipe.optimizer.scaled_lr(recipe.data.batch_size)  # any will do: what an update costs is asked
    optimizer = create_optimizer(recipe.optimizer, recipe.method.export(objective.module), objective.module, lr)

    batch_size = recipe.data.batch_size if cuda else min(recipe.data.batch_size, _CPU_BATCH)
    while True:
        try:
            seconds = _seconds_a_step(objective, optimizer, recipe, batch_size, entry)
            break
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size //= 2
    device = torch.cuda.get_device_name() if cuda else f"the CPU, {torch.get_num_threads()} threads"
    cut = "" if batch_size == recipe.data.batch_size else f", batch {batch_size}"
    precision = recipe.run.mixed_precision or "no"
    return Rate(batch_size / seconds, f"probe on {device}{cut}, mixed precision: {precision}")


def _seconds_a_step(objective: Any, optimizer: Any, recipe: Recipe, batch_size: int, entry: CatalogEntry) -> float:
    import torch

    from cskd_hf.batch import NUM_VIEWS, Batch

    device = objective.mean.device
    num_images = batch_size * NUM_VIEWS[recipe.method.views]
    images = torch.zeros(num_images, *recipe.transform.input_size, dtype=torch.uint8, device=device)
    labels = torch.arange(num_images, device=device)
    batch = Batch(images, labels % entry.num_classes, labels % entry.num_images[entry.train_split])
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None, None: None}[recipe.run.mixed_precision]
    on_cuda = device.type == "cuda"
    warm_up, timed = (3, 10) if on_cuda else (1, 2)
    objective.train()
    start = 0.0
    for step in range(warm_up + timed):
        if step == warm_up:
            if on_cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision is not None):
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if on_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / timed


def _write_blank_teacher(recipe: Recipe, class_names: tuple[str, ...], folder: Path) -> None:
    """A network as the teacher's recipe makes it, never trained, where `method.build` will look for it."""
    from cskd_hf.models.export import export_model
    from cskd_hf.models.factory import create_backbone

    model = create_backbone(recipe.model.model_copy(update={"pretrained": False}), len(class_names))
    export_model(model, folder, recipe.model, recipe.transform, class_names, "", {})
