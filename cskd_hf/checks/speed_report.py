"""The findings of `check --speed` in words: the bottleneck, the workers that would remove it, the length of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cskd_hf.checks.layout import row
from cskd_hf.recipe.recipe import Recipe


@dataclass(frozen=True)
class Speed:
    """Measured rates of one process, in supervised images per second, like a run's `images_per_second`.

    Attributes:
        loader, step, together: the loader alone, the step alone on one batch, and training.
        wait_share: share of the training time spent waiting for data.
        views: images loaded for each supervised one.
        workers: loader processes; 0 loads in the training process.
        cores: cores this process may use.
        threads: cores the step uses on a CPU; None on another device.
        peak_memory_bytes: peak allocation on a CUDA device, model included.
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
        """Cores the loader kept busy."""
        return max(1, min(self.workers, self.cores))

    @property
    def cores_to_feed(self) -> int:
        """Cores that load as fast as the step trains."""
        return max(1, math.ceil(self.step / (self.loader / self.loader_cores)))

    @property
    def loader_share(self) -> float:
        """Share of loading in the core-seconds that an image costs, where a CPU trains."""
        assert self.threads is not None
        loading, training = self.loader_cores / self.loader, min(self.threads, self.cores) / self.step
        return loading / (loading + training)


def describe(recipe: Recipe, speed: Speed, device: str, precision: str) -> list[str]:
    """The setting and the measured rates."""
    size = "×".join(map(str, recipe.transform.input_size[1:]))
    compiled = "compiled" if recipe.run.compile else "not compiled"
    setting = f"{recipe.model.model_name}, {recipe.method.name}, {size}, batches of {speed.batch_size}, precision"
    loaded = "" if speed.views == 1 else f"supervised, {speed.views * speed.loader:,.0f} loaded, "
    loaders = f"{speed.workers} worker processes" if speed.workers else "in the training process"
    lines = [
        row("speed", f"{setting} {precision}, {compiled}", f"on {device}; {speed.cores} cores for this process"),
        row("loader", f"{speed.loader:9,.0f} images/s   {loaded}{loaders}"),
        row("step", f"{speed.step:9,.0f} images/s   repeating one batch"),
        row(
            "together", f"{speed.together:9,.0f} images/s   {100 * speed.wait_share:.0f} % of the time waiting for data"
        ),
    ]
    if speed.peak_memory_bytes is not None:
        lines.append(row("memory", f"{speed.peak_memory_bytes / 1e9:9,.1f} GB peak on the device"))
    return lines


def advise(speed: Speed) -> list[str]:
    """The bottleneck, and how many workers would remove it."""
    need = speed.cores_to_feed
    if speed.threads is not None:
        share = 100 * speed.loader_share
        work = f"loading is {share:.0f} % of the work, the step {100 - share:.0f} %"
        return [
            row("limit", f"the {'loader' if share > 50 else 'step'}: they share the cores ({speed.cores}); {work}"),
            row("workers", f"{need} core{'s' * (need > 1)} would feed a device as fast as this step"),
        ]
    fast, slow = ("loader", "step") if speed.loader >= speed.step else ("step", "loader")
    ratio = max(speed.loader, speed.step) / min(speed.loader, speed.step)
    advice = [f"data.workers={need}, one core each, would feed the device"]
    if need > speed.cores:
        advice[0] += f"; this process may use {speed.cores} cores."
        advice.append("A copy with smaller images loads faster; from a checkout: scripts/resize_dataset.py")
    return [row("limit", f"the {slow}: the {fast} is {ratio:.1f} times as fast"), row("workers", *advice)]


def estimate(recipe: Recipe, speed: Speed, num_train: int, num_holdout: int, num_test: int) -> list[str]:
    """Duration of an epoch, and of the run with its evaluations."""
    processes = recipe.run.num_processes or 1
    epochs = recipe.scheduler.total_epochs
    epoch = num_train / speed.together / processes
    # An evaluated image is loaded once and forwarded, about a third of a step.
    loading, forward = 1 / (speed.views * speed.loader), 1 / (3 * speed.step)
    per_image = loading + forward if speed.threads is not None else max(loading, forward)
    num_evaluated = recipe.run.num_evaluated(epochs, num_holdout, num_test)
    total = epochs * epoch + num_evaluated * per_image / processes
    scaled = f", on {processes} processes as fast as this one" if processes > 1 else ""
    return [
        row("time", f"{_readable(epoch)} per epoch of {num_train:,} images{scaled}"),
        row("", f"{_readable(total)} in total: {epochs:,} epochs, evaluations included"),
    ]


def _readable(seconds: float) -> str:
    """'1.70 hours' from a hundredth of an hour, else '12.3 seconds'."""
    return f"{seconds / 3600:,.2f} hours" if seconds >= 36 else f"{seconds:.1f} seconds"
