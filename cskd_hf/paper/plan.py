"""Estimate how long missing runs take: from finished runs, else by timing a few steps on blank images.

Device-hours are processes × hours, assuming perfect scaling. An evaluated image counts as a third of a trained one:
one forward against forward and backward.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run, RunKey
from cskd_hf.paper.find import RunState
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.summary import read_recipe, read_summary

_MAX_CPU_BATCH = 8  # a larger batch is no faster on a CPU, and may not fit in memory


class Rate(NamedTuple):
    """Supervised images per second on one device."""

    images_per_second: float
    source: str  # how it was obtained


class Measurement(NamedTuple):
    """The throughput of a finished run, per device."""

    name: str
    recipe: Recipe
    images_per_second: float


def estimate(runs: Mapping[RunKey, Run], missing: Iterable[RunKey], root: Path) -> dict[RunKey, Rate]:
    """A rate for each missing run; a workload that no finished run covers is probed once, with progress on stderr."""
    measurements = measure_finished(root)
    rates: dict[RunKey, Rate] = {}
    unknown: dict[str, list[RunKey]] = {}
    for key in missing:
        rate = from_finished(runs[key].expected, measurements)
        if rate is None:
            unknown.setdefault(workload(runs[key].expected), []).append(key)
        else:
            rates[key] = rate
    for number, (work, keys) in enumerate(unknown.items(), start=1):
        print(f"probe {number} of {len(unknown)}: {work}", file=sys.stderr, flush=True)
        run = runs[keys[0]]
        rates |= dict.fromkeys(keys, probe(run, None if run.teacher is None else runs[run.teacher]))
    return rates


def workload(recipe: Recipe) -> str:
    """The settings that determine the speed of a step."""
    size = "×".join(map(str, recipe.transform.input_size[1:]))
    return f"{recipe.model.model_name}, {size}, batch {recipe.data.batch_size}, {recipe.method.name}"


def device_hours(run: Run, state: RunState, rate: Rate) -> float:
    """Remaining time of a run on one device."""
    recipe, entry = run.expected, CATALOG[run.key.dataset]
    train, test = entry.num_images[entry.train_split], entry.num_images[entry.test_split]
    validation = test
    if isinstance(recipe.data.holdout, str):
        validation = entry.num_images[recipe.data.holdout]
    elif recipe.data.holdout:
        validation = round(train * recipe.data.holdout)
        train -= validation
    epochs = recipe.scheduler.total_epochs - state.epochs
    evaluated = validation * math.ceil(epochs / recipe.run.val_interval) + test
    return (train * epochs + evaluated / 3) / rate.images_per_second / 3600


def measure_finished(root: Path) -> list[Measurement]:
    """Every finished run below a folder that this version can read."""
    measurements = []
    for path in sorted(root.glob("*/summary.json")):
        try:
            recipe = read_recipe(path.parent)
            throughput = read_summary(path.parent, recipe).throughput
        except UserError:
            continue  # the table reports the folder if it needs it
        rate = throughput.images_per_second / throughput.num_processes
        measurements.append(Measurement(path.parent.name, recipe, rate))
    return measurements


def from_finished(recipe: Recipe, measurements: Iterable[Measurement]) -> Rate | None:
    """The median over runs of the same dataset, network and method, else over runs of the same workload."""

    def cell(other: Recipe) -> tuple[str, str, str]:
        return other.data.dataset, other.model.model_name, other.method.name

    comparable = [
        each
        for each in measurements
        if each.recipe.transform.input_size == recipe.transform.input_size
        and recipe.run.mixed_precision in (None, each.recipe.run.mixed_precision)
    ]
    nearest = [each for each in comparable if cell(each.recipe) == cell(recipe)] or [
        each for each in comparable if workload(each.recipe) == workload(recipe)
    ]
    if not nearest:
        return None
    others = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
    return Rate(statistics.median(each.images_per_second for each in nearest), f"finished {nearest[0].name}{others}")


def probe(run: Run, teacher: Run | None) -> Rate:
    """Time the run's training step on blank images; data loading is not included.

    Args:
        teacher: of a distilled run. Random weights of the same network stand in for it.
    """
    import torch
    from accelerate.utils import find_executable_batch_size
    from torch.utils.benchmark import Timer

    from cskd_hf.batch import NUM_VIEWS, Batch
    from cskd_hf.engine.build import build_objective
    from cskd_hf.engine.optimizer import create_optimizer
    from cskd_hf.methods.base import Experiment

    recipe, entry = run.expected.replace(model={"pretrained": False}), CATALOG[run.key.dataset]
    mean, std = recipe.transform.mean, recipe.transform.std
    assert mean is not None
    assert std is not None
    num_images = entry.num_images[entry.train_split]
    class_names = tuple(f"class {number}" for number in range(entry.num_classes))
    with tempfile.TemporaryDirectory() as folder:
        if teacher is not None:
            _write_random_teacher(teacher.expected, class_names, Path(folder) / "model")
            recipe = recipe.replace(method={"teacher": folder})
        experiment = Experiment(num_images, recipe.scheduler.total_epochs, class_names, mean, std)
        objective = build_objective(recipe, experiment)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu, precision, full_batch = device.type == "cpu", recipe.run.mixed_precision, recipe.data.batch_size
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None, None: None}[precision]
    objective.to(device).train()
    optimizer = create_optimizer(recipe.optimizer, recipe.method.export(objective.module), objective.module, lr=0.0)

    @find_executable_batch_size(starting_batch_size=min(full_batch, _MAX_CPU_BATCH) if on_cpu else full_batch)
    def measure(batch_size: int) -> Rate:
        total = batch_size * NUM_VIEWS[recipe.method.views]
        images = torch.zeros(total, *recipe.transform.input_size, dtype=torch.uint8, device=device)
        index = torch.arange(total, device=device)
        batch = Batch(images, index % len(class_names), index % num_images)

        def step() -> None:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = objective(batch)["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        timer = Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())
        seconds = timer.timeit(2 if on_cpu else 10).mean  # after two steps of warm-up
        name = f"the CPU, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
        reduced = "" if batch_size == full_batch else f", batch {batch_size}"
        return Rate(batch_size / seconds, f"probe on {name}{reduced}, mixed precision: {precision or 'no'}")

    return measure()


def _write_random_teacher(recipe: Recipe, class_names: Sequence[str], folder: Path) -> None:
    from cskd_hf.models.export import export_model
    from cskd_hf.models.factory import create_backbone

    model = create_backbone(recipe.model.model_copy(update={"pretrained": False}), len(class_names))
    export_model(model, folder, recipe.model, recipe.transform, class_names, "", {})
