"""How fast a recipe trains here: its loader alone, its step alone, both together.

    python -m cskd_hf.check RECIPE --speed

Data, loader, model and step are those of training, on the device at hand; some seven seconds each, after a warm-up.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

from cskd_hf.engine.cpu_tuning import keep_freed_memory, limit_openmp_spinning
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

if TYPE_CHECKING:
    from cskd_hf.checks.speed_report import Speed

# A CPU is as fast on few images as on many, and shall come to several steps in so short a time.
_CPU_BATCH = 16


def check_speed(recipe: Recipe, seconds: float = 30.0) -> int:
    """Measure and print one screen; returns the exit status.

    Args:
        seconds: for the three measurements and their warm-ups.

    Raises:
        UserError: what would stop training too; more than one process; too little memory on the device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--speed: measures one process; start it without a launcher")
    # Heavy imports wait until the recipe is known to be good.
    limit_openmp_spinning()
    import torch
    from accelerate import Accelerator

    from cskd_hf.checks.speed_report import advise, describe, estimate
    from cskd_hf.data.splits import load_images
    from cskd_hf.recipe.resolve import resolve

    accelerator = Accelerator(mixed_precision=recipe.run.mixed_precision)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    recipe = resolve(recipe)
    images = load_images(recipe.data)
    try:
        speed = measure(recipe, images, accelerator, seconds / 4)
    except torch.OutOfMemoryError:
        raise UserError(
            f"data.batch_size: {recipe.data.batch_size} does not fit on the device; lower it, or write "
            "run.grad_checkpointing=true"
        ) from None
    device = accelerator.device.type
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    held = None if images.holdout is None else len(images.holdout)
    lines = [*describe(recipe, speed, name, accelerator.mixed_precision), "", *advise(speed), ""]
    print("\n".join([*lines, *estimate(recipe, speed, len(images.train), held, len(images.test))]))
    return 0


def measure(recipe: Recipe, images: Any, accelerator: Any, seconds: float) -> Speed:
    """Build what training builds from a resolved recipe, and time it.

    Args:
        seconds: for each of three measurements, after a third as long that is not counted.
    """
    import torch

    from cskd_hf.batch import NUM_VIEWS
    from cskd_hf.checks.speed_report import Speed
    from cskd_hf.data.loaders import available_cores, count_workers, workers_ended
    from cskd_hf.engine.build import build_batches, build_loader, build_training_objective
    from cskd_hf.engine.learner import build_learner
    from cskd_hf.engine.objective import dry_run
    from cskd_hf.engine.updates import training_updates
    from cskd_hf.runs.progress import Progress

    on_cpu, on_cuda = accelerator.device.type == "cpu", accelerator.device.type == "cuda"
    batch_size = min(recipe.data.batch_size, _CPU_BATCH) if on_cpu else recipe.data.batch_size
    # A short last batch would count as a whole one where one batch is repeated.
    recipe = recipe.replace(data={"batch_size": batch_size, "drop_last": batch_size <= len(images.train)})

    batches = build_batches(recipe, images.train, accelerator)
    loader = build_loader(recipe, images.train, batches, accelerator)
    built = build_training_objective(recipe, images, accelerator)
    dry_run(built, recipe.transform.input_size, batches.smallest, images.num_classes, accelerator.device)
    learner = dataclasses.replace(build_learner(recipe, built, batches, accelerator), scheduler=None)
    for group in learner.optimizer.param_groups:
        group["lr"] = 0.0  # weights trained on one batch for long must not diverge

    def train(on: Any) -> tuple[float, float]:
        """Supervised images per second, and the share of the time spent waiting for data."""
        progress = Progress()
        updates: Any = training_updates(learner, on, batches, accelerator, progress, recipe.run, num_epochs=2**31)
        # The first updates compile and choose kernels, and find as many batches ready as there are workers.
        next(updates)
        _pass(updates, 2 * workers + 1, seconds / 3)
        samples, spent, waited = progress.samples, progress.seconds, progress.wait_seconds
        _pass(updates, None, seconds)
        updates.close()
        took = progress.seconds - spent
        return (progress.samples - samples) / took, (progress.wait_seconds - waited) / took

    workers = count_workers(recipe.data.workers)
    arriving = _epochs(loader, batches)
    with workers_ended(loader):
        batch = next(arriving)
        _pass(arriving, 2 * workers, seconds / 3)
        began = time.perf_counter()
        count = _pass(arriving, None, seconds)
        loader_rate = count * batch_size / (time.perf_counter() - began)
        arriving.close()
        step_rate, _ = train(itertools.repeat(batch))
        together, wait_share = train(loader)
    peak = torch.cuda.max_memory_allocated() if on_cuda else None
    return Speed(
        loader=loader_rate,
        step=step_rate,
        together=together,
        wait_share=wait_share,
        batch_size=batch_size,
        views=NUM_VIEWS[recipe.method.views],
        workers=workers,
        cores=available_cores(),
        threads=torch.get_num_threads() if on_cpu else None,
        peak_memory_bytes=peak,
    )


def _epochs(loader: Any, batches: Any) -> Generator[Any, None, None]:
    for epoch in itertools.count():
        batches.start_epoch(epoch)
        yield from loader


def _pass(things: Iterator[Any], most: int | None, seconds: float) -> int:
    """Take things one after another until the time is over, at least one; returns how many."""
    end = time.perf_counter() + seconds
    for number in itertools.count(1):
        next(things)
        if number == most or time.perf_counter() > end:
            return number
    raise AssertionError("unreachable")
