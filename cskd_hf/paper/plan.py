"""Estimate how long missing runs take: from finished runs, else by timing a few steps on blank images.

Device-hours are processes × hours, assuming perfect scaling. An evaluated image counts as a third of a trained one:
one forward against forward and backward.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run, Size
from cskd_hf.paper.find import RunState
from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.summary import read_recipe, read_summary

if TYPE_CHECKING:
    from cskd_hf.engine.objective import Objective

_MAX_CPU_BATCH = 8  # a larger batch is no faster on a CPU, and may not fit in memory


class Rate(NamedTuple):
    """Supervised images per second on one device, and how they were obtained."""

    images_per_second: float
    source: str


def estimate(runs: Mapping[RunKey, Run], missing: Iterable[RunKey], root: Path) -> dict[RunKey, Rate]:
    """A rate for each missing run; a workload that no finished run covers is probed once, with progress on stderr."""
    finished = finished_rates(root)
    rates: dict[RunKey, Rate] = {}
    unknown: dict[str, list[RunKey]] = {}
    for key in missing:
        rate = from_finished(runs[key].expected, finished)
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
    method = f"{recipe.method.name}, cost {recipe.method.cost:.3g}"
    return f"{recipe.model.model_name}, {size}, batch {recipe.data.batch_size}, {method}"


def device_hours(run: Run, state: RunState, rate: Rate) -> float:
    """Remaining time of a run on one device."""
    recipe, (_, train, holdout, test) = run.expected, run.size
    epochs = recipe.scheduler.total_epochs - state.epochs
    evaluated = recipe.run.num_evaluated(epochs, holdout, test)
    return (train * epochs + evaluated / 3) / rate.images_per_second / 3600


def finished_rates(root: Path) -> list[tuple[Recipe, Rate]]:
    """The recipe and throughput of every finished run below a folder that this version can read."""
    rates = []
    for path in sorted(root.glob("*/summary.json")):
        try:
            recipe = read_recipe(path.parent)
            throughput = read_summary(path.parent, recipe).throughput
        except UserError:
            continue  # the table reports the folder if it needs it
        per_device = throughput.images_per_second / throughput.num_processes
        rates.append((recipe, Rate(per_device, f"finished {path.parent.name}")))
    return rates


def from_finished(recipe: Recipe, finished: Iterable[tuple[Recipe, Rate]]) -> Rate | None:
    """The median over runs of the same dataset, network and method, else over runs of the same workload."""

    def cell(of: Recipe) -> tuple[str, str, str, float]:
        return of.data.dataset, of.model.model_name, of.method.name, of.method.cost

    comparable = [
        (other, rate)
        for other, rate in finished
        if other.transform.training_sizes == recipe.transform.training_sizes
        and recipe.run.mixed_precision in (None, other.run.mixed_precision)
    ]
    nearest = [rate for other, rate in comparable if cell(other) == cell(recipe)]
    nearest = nearest or [rate for other, rate in comparable if workload(other) == workload(recipe)]
    if not nearest:
        return None
    others = f" and {len(nearest) - 1} more" if len(nearest) > 1 else ""
    return Rate(statistics.median(rate.images_per_second for rate in nearest), nearest[0].source + others)


def probe(run: Run, teacher: Run | None) -> Rate:
    """Time the run's training step on blank images; data loading is not included.

    Args:
        teacher: of a distilled run; random weights of its network stand in for it.
    """
    import torch
    from accelerate.utils import find_executable_batch_size

    from cskd_hf.batch import NUM_VIEWS, Batch
    from cskd_hf.engine.optimizer import create_optimizer

    recipe, size = run.expected, run.size
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu, precision, full_batch = device.type == "cpu", recipe.run.mixed_precision, recipe.data.batch_size
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None, None: None}[precision]
    objective = _random_objective(recipe, size, None if teacher is None else teacher.expected).to(device).train()
    optimizer = create_optimizer(recipe.optimizer, recipe.method.export(objective.module), objective.module, lr=0.0)

    @find_executable_batch_size(starting_batch_size=min(full_batch, _MAX_CPU_BATCH) if on_cpu else full_batch)
    def measure(batch_size: int) -> Rate:
        total = batch_size * NUM_VIEWS[recipe.method.views]
        images = torch.zeros(total, *recipe.transform.input_size, dtype=torch.uint8, device=device)
        index = torch.arange(total, device=device) % batch_size
        batch = Batch(images, index % size.classes, index % size.train)

        def seconds_of(num_steps: int) -> float:
            start = time.perf_counter()
            for _ in range(num_steps):
                with torch.autocast(device.type, dtype, enabled=dtype is not None):
                    loss = objective(batch)["loss"]
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loss.item()  # a device sync
            return time.perf_counter() - start

        num_warmup, num_steps = (1, 2) if on_cpu else (3, 10)
        seconds_of(num_warmup)
        seconds = seconds_of(num_steps) / num_steps
        name = f"the CPU, {torch.get_num_threads()} threads" if on_cpu else torch.cuda.get_device_name()
        reduced = "" if batch_size == full_batch else f", batch {batch_size}"
        return Rate(batch_size / seconds, f"probe on {name}{reduced}, mixed precision: {precision or 'no'}")

    return measure()


def _random_objective(recipe: Recipe, size: Size, teacher: Recipe | None) -> Objective:
    from cskd_hf.engine.build import build_objective
    from cskd_hf.methods.base import Experiment
    from cskd_hf.models.export import export_model
    from cskd_hf.models.factory import create_backbone

    names = tuple(f"class {number}" for number in range(size.classes))
    num_epochs = recipe.scheduler.total_epochs
    experiment = Experiment(size.train, num_epochs, names, mean=IMAGENET_MEAN, std=IMAGENET_STD)  # blank images: any
    with tempfile.TemporaryDirectory() as folder:
        if teacher is not None:
            model = create_backbone(teacher.model.without_weights(), size.classes)
            export_model(model, Path(folder) / "model", teacher.model, teacher.transform, names, "", {})
            recipe = recipe.replace(method={"teacher": folder})
        return build_objective(recipe.replace(model={"pretrained": False, "checkpoint": None}), experiment)
