"""Measure how fast a recipe trains on this machine: its loader alone, its training step alone, both together."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.checks.speed_report import Speed, advise, describe, estimate
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.loaders import available_cores, count_workers, workers_ended
from cskd_hf.data.splits import Images, load_images
from cskd_hf.engine.build import build_batches, build_loader, build_training_objective
from cskd_hf.engine.cpu_tuning import keep_freed_memory
from cskd_hf.engine.launch import check_accelerator, check_environment
from cskd_hf.engine.learner import build_learner
from cskd_hf.engine.objective import dry_run
from cskd_hf.engine.updates import training_updates
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.resolve import resolve
from cskd_hf.runs.progress import Progress, Stopwatch

_CPU_BATCH = 16  # a CPU's throughput hardly depends on it, and a small batch gives several steps in little time


def check_speed(recipe: Recipe, seconds: float = 30.0) -> int:
    """Measure, print one screen and return the exit status.

    Args:
        seconds: for the three measurements and their warm-ups.

    Raises:
        UserError: whatever would stop training; several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--speed: measures one process; start it without a launcher")
    check_environment(recipe)
    accelerator = Accelerator(mixed_precision=recipe.run.mixed_precision)
    check_accelerator(accelerator)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    recipe = resolve(recipe)
    images = load_images(recipe.data)
    speed = _measure(recipe, images, accelerator, seconds / 4)
    device = accelerator.device.type
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    duration = estimate(recipe, speed, len(images.train), len(images.holdout or ()), len(images.test))
    print(*describe(recipe, speed, name, accelerator.mixed_precision), "", *advise(speed), "", *duration, sep="\n")
    return 0


def _measure(recipe: Recipe, images: Images, accelerator: Accelerator, seconds: float) -> Speed:
    """Build what training builds; time each of three parts for `seconds`, after a warm-up a third as long."""
    on_cpu, on_cuda = accelerator.device.type == "cpu", accelerator.device.type == "cuda"
    batch_size = min(recipe.data.batch_size, _CPU_BATCH) if on_cpu else recipe.data.batch_size
    # Rates count every batch as a full one, so a short last batch is dropped.
    recipe = recipe.replace(data={"batch_size": batch_size, "drop_last": batch_size <= len(images.train)})
    recipe = recipe.replace(transform={"size_schedule": ()})  # as in the last epochs
    # Thousands of steps on one batch must not make the weights diverge; some optimizers reject a rate of 0.
    recipe = recipe.replace(optimizer={"lr": 1e-30}, scheduler={"sched": "none", "warmup_epochs": 0})
    batches = build_batches(recipe, images.train, accelerator)
    loader = build_loader(recipe, images.train, batches, accelerator)
    objective = build_training_objective(recipe, images, accelerator)
    dry_run(objective, recipe.transform, batches.smallest, images.num_classes, accelerator.device)
    learner = build_learner(recipe, objective, batches, accelerator)
    workers = count_workers(recipe.data.workers)

    def train(source: Any) -> dict[str, float]:
        progress = Progress()
        updates: Any = training_updates(learner, source, batches, accelerator, progress, recipe.run, num_epochs=2**31)
        with closing(updates):
            # The first updates compile, choose kernels and use up the batches that the workers prefetched.
            next(updates)
            _consume(updates, seconds / 3, at_most=2 * workers + 1)
            stopwatch = Stopwatch(progress)
            _consume(updates, seconds)
        return stopwatch.lap(progress)

    with workers_ended(loader):
        with closing(_endless(loader, batches)) as epochs:
            batch = next(epochs)
            _consume(epochs, seconds / 3, at_most=2 * workers)
            start = time.perf_counter()
            num_images = batch_size * _consume(epochs, seconds)
            loader_rate = num_images / (time.perf_counter() - start)
        step, together = train(itertools.repeat(batch)), train(loader)
    return Speed(
        loader=loader_rate,
        step=step["images_per_second"],
        together=together["images_per_second"],
        wait_share=together["data_wait_share"],
        batch_size=batch_size,
        views=NUM_VIEWS[recipe.method.views],
        workers=workers,
        cores=available_cores(),
        threads=torch.get_num_threads() if on_cpu else None,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if on_cuda else None,
    )


def _endless(loader: DataLoader[Any], batches: GlobalBatches) -> Generator[Any, None, None]:
    """The batches of one epoch after another."""
    for epoch in itertools.count():
        batches.start_epoch(epoch)
        yield from loader


def _consume(iterator: Iterator[Any], seconds: float, at_most: int | None = None) -> int:
    """Take at least one item, and more until the time is over; returns how many."""
    end = time.perf_counter() + seconds
    for count, _ in enumerate(iterator, start=1):
        if count == at_most or time.perf_counter() > end:
            return count
    raise AssertionError("the iterator is endless")
