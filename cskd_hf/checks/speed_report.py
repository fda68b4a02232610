"""What `check --speed` measured, in words: which part limits, what would feed it, how long a run takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cskd_hf.recipe.recipe import Recipe


@dataclass(frozen=True)
class Speed:
    """What was measured. A rate counts supervised images a second, as `images_per_second` of a run does.

    Attributes:
        loader, step, together: the rates, of one process.
        wait_share: of the time that training took, what it waited for data.
        views: images that are loaded for each supervised one.
        workers: loaders; 0 loads in the training process.
        cores: that this process may use; threads: that the step takes of them, None on another device.
        peak_memory_bytes: most that was allocated on a CUDA device, from the model's making on.
    """

    loader: float
    step: float
    together: float
    wait_share: float
    batch_size: int
    views: int
    workers: int
    cores: int
    threads: int | None
    peak_memory_bytes: int | None = None

    @property
    def loader_cores(self) -> int:
        """Cores that the loader was busy on."""
        return max(1, min(self.workers, self.cores))

    @property
    def cores_to_feed(self) -> int:
        """Cores that load as fast as the step trains."""
        return max(1, math.ceil(self.step / (self.loader / self.loader_cores)))

    @property
    def loader_share(self) -> float:
        """Of the work of training an image, in seconds of a core, what loading it is; where the CPU trains."""
        assert self.threads is not None
        loading, training = self.loader_cores / self.loader, min(self.threads, self.cores) / self.step
        return loading / (loading + training)


def describe(recipe: Recipe, speed: Speed, device: str, precision: str) -> list[str]:
    """What was measured, a line each."""
    size = "×".join(map(str, recipe.transform.input_size[1:]))
    loaders = f"by {speed.workers} processes" if speed.workers else "in the training process"
    more = "" if speed.views == 1 else f"supervised, {speed.views * speed.loader:,.0f} loaded, "
    waited = 100 * speed.wait_share
    compiled = "compiled" if recipe.run.compile else "not compiled"
    lines = [
        f"{'speed':11s}{recipe.model.model_name}, {recipe.method.name}, {size}, batches of {speed.batch_size}, "
        f"precision {precision}, {compiled}",
        f"{'':11s}on {device}; {speed.cores} cores for this process",
        f"{'loader':11s}{speed.loader:9,.0f} images/s   {more}{loaders}",
        f"{'step':11s}{speed.step:9,.0f} images/s   one batch again and again",
        f"{'together':11s}{speed.together:9,.0f} images/s   waiting for data {waited:.0f} % of the time",
    ]
    if speed.peak_memory_bytes is not None:
        lines.append(f"{'memory':11s}{speed.peak_memory_bytes / 1e9:9,.1f} GB on the device at the peak")
    return lines


def advise(speed: Speed) -> list[str]:
    """Which of the two limits, and what would change it."""
    need = speed.cores_to_feed
    if speed.threads is not None:
        share = 100 * speed.loader_share
        first = "the loader" if share > 50 else "the step"
        cores = f"{speed.cores} cores" if speed.cores > 1 else "one core"
        return [
            f"{'limit':11s}{first}. Both share {cores}: of the work of an image, loading is {share:.0f} %, the step "
            f"{100 - share:.0f} %",
            f"{'workers':11s}a device of this step's speed is fed by {need} core{'s' * (need > 1)}",
        ]
    if speed.loader >= speed.step:
        return [
            f"{'limit':11s}the step: the loader is {speed.loader / speed.step:.1f} times as fast",
            f"{'workers':11s}data.workers={need} would feed the device",
        ]
    told = f"{'workers':11s}data.workers={need}, each on a core of its own, would feed the device"
    if need > speed.cores:
        told += (
            f"; this process may use {speed.cores}.\n{'':11s}A copy with smaller images loads several times as fast: "
            "scripts/resize_dataset.py"
        )
    return [f"{'limit':11s}the loader: the step is {speed.step / speed.loader:.1f} times as fast", told]


def estimate(recipe: Recipe, speed: Speed, num_train: int, num_held: int | None, num_test: int) -> list[str]:
    """Hours of an epoch and of the run, evaluations included."""
    processes = recipe.run.num_processes or 1
    epochs = recipe.scheduler.total_epochs
    epoch = num_train / speed.together / processes
    # An evaluated image is loaded once and forwarded, a third of a step.
    loading, forward = 1 / (speed.views * speed.loader), 1 / (3 * speed.step)
    evaluated = loading + forward if speed.threads is not None else max(loading, forward)
    watched = num_test if num_held is None else num_held
    times = math.ceil(epochs / recipe.run.val_interval)
    final = num_test + (num_held or 0)
    total = epochs * epoch + (times * watched + final) * evaluated / processes
    shared = f", on {processes} processes as fast as this one" if processes > 1 else ""
    return [
        f"{'time':11s}{_readable(epoch)} an epoch of {num_train:,} images{shared}",
        f"{'':11s}{_readable(total)} in all: {epochs:,} epochs, evaluations included",
    ]


def _readable(seconds: float) -> str:
    """'1.7 hours' down to a hundredth of an hour, and seconds below."""
    return f"{seconds / 3600:,.2f} hours" if seconds >= 36 else f"{seconds:.1f} seconds"
