"""Progress and results for people: a bar on a terminal, one line per epoch, the result table; on one rank only."""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.inspect import QuickCheck
from cskd_hf.data.splits import Images
from cskd_hf.evaluation.calibration import holdout_note
from cskd_hf.evaluation.table import as_text, metric_rows
from cskd_hf.models.export import loading_code
from cskd_hf.models.factory import starting_weights
from cskd_hf.models.freezing import frozen_norms
from cskd_hf.models.layers import batch_norms
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.sections import SELECTION_METRICS, RunSection
from cskd_hf.report.describe import describe_images, describe_method, describe_network, random_weights_note
from cskd_hf.report.schedule import describe_schedule, milestone_note, rate_notes, rates_by_epoch, size_note
from cskd_hf.runs.progress import Progress, TimeLeft
from cskd_hf.runs.summary import read_summary

MAX_FIRST_WEIGHTS = 0.01  # share of the first update's weights in an average that is worth exporting [ours]


class Console:
    """One run's output: lines on stdout, the bar on stderr.

    Args:
        enabled: False on all ranks but one.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.bar: tqdm[Any] | None = None
        self.samples_per_epoch = 0
        self.estimate = TimeLeft(0, 0)

    def say(self, text: str) -> None:
        """Print above the bar."""
        if self.enabled:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def checked(self, checked: QuickCheck) -> None:
        """The problems of the data, and the pixel values of each split; `start` prints the notes."""
        for line in checked.problems:
            self.say(f"note: {line}")
        self.say(checked.values)

    def start(
        self,
        recipe: Recipe,
        images: Images,
        network: nn.Module,
        batches: GlobalBatches,
        progress: Progress,
        device: torch.device,
    ) -> None:
        """What is about to run, including how the update's batch size comes about, and warnings."""
        epochs = recipe.scheduler.total_epochs
        holdout = "" if images.holdout is None else f", {len(images.holdout):,} hold-out"
        accumulation = recipe.run.gradient_accumulation_steps
        anchors = batches.global_batch_size * accumulation
        updates = -(-batches.num_samples // anchors)
        method = describe_method(recipe.to_dict()["method"])
        lr, rule = recipe.optimizer.scaled_lr(anchors)
        views = NUM_VIEWS[recipe.method.views]
        unit = "images" if views == 1 else f"anchors ({views * anchors:,} images)"
        start = starting_weights(network)
        rates = rates_by_epoch(recipe.scheduler, lr, updates)
        schedule = describe_schedule(recipe.scheduler, rates)
        lines = {
            "data": f"{recipe.data.dataset}: {images.num_classes:,} classes, {len(images.train):,} training images"
            f"{holdout}, {len(images.test):,} test",
            "images": describe_images(recipe.transform),
            "model": describe_network(recipe.model, network),
            "weights": "random" if start is None else f"{start.name}: {start.loaded}",
            "method": method.removeprefix("name "),
            "update": f"{recipe.data.batch_size} x {batches.num_processes} processes x {accumulation} accumulated = "
            f"{anchors:,} {unit}",
            "lr": f"{lr:g} {rule}; {schedule}",
            "epochs": f"{epochs:,} of {updates:,} updates",
            "device": f"{_device_name(device)}, mixed precision: {recipe.run.mixed_precision}",
        }
        if recipe.run.uses_holdout:
            lines["result"] = recipe.run.chosen_epoch
        self.say("\n".join([str(recipe.run.output_dir), *(_wrapped(name, text) for name, text in lines.items())]))
        notes = [*images.notes, *_batch_note(recipe, batches, lr), *ema_note(recipe.run, epochs * updates)]
        notes += [*small_data_note(recipe, batches), *last_batch_note(recipe, batches, network)]
        notes += rate_notes(recipe.scheduler, lr, rates) + milestone_note(recipe.scheduler)
        notes += size_note(recipe.transform, recipe.scheduler)
        notes += random_weights_note(recipe.model)
        notes += [] if images.holdout is None else holdout_note(len(images.holdout))
        for note in notes:
            self.say(f"  note       {note}")
        self.estimate = TimeLeft(progress.step, epochs * updates)
        self.samples_per_epoch = batches.num_samples
        if self.enabled and sys.stdout.isatty():
            self.bar = tqdm(
                total=epochs * self.samples_per_epoch,
                initial=progress.epoch * self.samples_per_epoch + progress.position,
                unit=" images",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def first_keys(self, recipe: Recipe, names: Sequence[str], keys: Sequence[str]) -> None:
        """The first keys of each rank, so that a log shows that no two train on the same images."""
        kind = "keys" if NUM_VIEWS[recipe.method.views] > 1 else "images"
        for name, first in zip(names, keys, strict=True):
            self.say(f"  {name}: first {kind} {first}")

    def advance(self, progress: Progress) -> None:
        """Move the bar; once, say how long training will take."""
        if line := self.estimate.after(progress):
            self.say(line)
        if self.bar is not None:
            self.bar.update(progress.epoch * self.samples_per_epoch + progress.position - self.bar.n)

    def show(self, terms: Mapping[str, float], progress: Progress) -> None:
        """Loss terms, and the share of time spent waiting for data, next to the bar."""
        if self.bar is not None:
            waiting = 100 * progress.wait_seconds / max(progress.seconds, 1e-9)
            values = {name: f"{value:.3f}" for name, value in terms.items()}
            self.bar.set_postfix({**values, "wait": f"{waiting:.0f}%"}, refresh=False)

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        """One line: training loss and error, error and calibration of each evaluated split, throughput."""
        parts = [f"epoch {line['epoch'] + 1:3d}/{epochs}  train loss {line['train/loss']:.3f}"]
        parts += [f"error {line['train/top1_error']:5.2f} %"]
        for split in ("holdout", "test"):
            if f"{split}/top1_error" in line:
                parts += [f"| {split} error {line[f'{split}/top1_error']:5.2f} % ECE {line[f'{split}/ece']:5.2f} %"]
        waiting = f"{100 * line['data_wait_share']:.0f} % waiting for data"
        self.say("  ".join([*parts, f"| {line['images_per_second']:,.0f} images/s, {waiting}"]))

    def stopped_early(self, progress: Progress) -> None:
        """One line: the hold-out set ended training."""
        metric, since = SELECTION_METRICS[progress.best_metric], progress.evaluations_since_best
        self.say(
            f"training stops early after epoch {progress.epoch}: {since} evaluations since the best hold-out {metric}, "
            f"of epoch {progress.best_epoch}"
        )

    def stopped(self, reason: str, progress: Progress) -> None:
        """One line on stderr: why, where, and how to resume."""
        self.close()
        if self.enabled:
            print(f"stopped by {reason} at {progress.place}; rerun the same command to resume", file=sys.stderr)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def result(self, folder: Path) -> None:
        """The metrics of a finished run with their definitions, and where its files are."""
        if not self.enabled:
            return
        summary = read_summary(folder)
        metrics = summary.metrics
        self.say(f"\ntest split, {summary.which_epoch}\n{as_text(metric_rows(metrics.last, metrics.metrics_scaled))}")
        self.say(metrics.verdict)
        for note in summary.notes:
            self.say(f"note: {note}")
        self.say(f"\nreport   {folder / 'report.html'}\nfigures  {folder / 'figures'}\nweights  {folder / 'model'}\n")
        self.say(loading_code(f"local-dir:{(folder / 'model').as_posix()}", summary.model.needs_cskd_hf))


def _batch_note(recipe: Recipe, batches: GlobalBatches, lr: float) -> list[str]:
    """A warning if several processes make the batch larger than the recipe's while the learning rate stays."""
    world = batches.num_processes
    if world == 1 or recipe.optimizer.lr is None or recipe.run.num_processes is not None:
        return []
    base = lr * 256 / (recipe.data.batch_size * recipe.run.gradient_accumulation_steps)
    return [
        f"{world} processes make the batch {world} times the recipe's, and lr {lr:g} is fixed: write "
        f"'optimizer.lr=null' optimizer.lr_base={base:g} to scale it, or run.num_processes={world} if it is meant"
    ]


def small_data_note(recipe: Recipe, batches: GlobalBatches) -> list[str]:
    """A warning if an update takes more images than there are."""
    accumulation = recipe.run.gradient_accumulation_steps
    anchors, num_images = batches.global_batch_size * accumulation, len(batches.sampler)
    if anchors <= num_images:
        return []
    size = 2 ** int(math.log2(max(num_images / (4 * batches.num_processes * accumulation), 1)))
    return [
        f"data.batch_size: an update takes {anchors:,} images, but there are {num_images:,}: one update per epoch; "
        f"write data.batch_size={size}"
    ]


def last_batch_note(recipe: Recipe, batches: GlobalBatches, network: nn.Module) -> list[str]:
    """A warning if BatchNorm normalises by the statistics of very few images once in every epoch.

    The limits are [ours]; recipes/RESULTS.md has a training that 2 of 64 samples undid.
    """
    smallest, size = batches.smallest, recipe.data.batch_size
    if smallest >= min(8, size / 4) or len(batch_norms(network)) == len(frozen_norms(network)):
        return []
    return [
        f"data.drop_last: an epoch's last batch leaves {smallest} of {size} samples to a process, whose BatchNorm "
        "statistics are noisy enough to undo training; write data.drop_last=true"
    ]


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)" if device.type == "cpu" else str(device)


def _wrapped(name: str, text: str) -> str:
    """A line of the start block, in 80 columns."""
    start = f"  {name:9s}  "
    lines = textwrap.wrap(text, 80 - len(start), break_long_words=False, break_on_hyphens=False)
    return start + f"\n{' ' * len(start)}".join(lines)


def ema_note(run: RunSection, updates: int) -> list[str]:
    """A warning if an average of constant length still consists of the first weights when training ends."""
    first = run.model_ema_decay ** (updates - 1)  # timm's average starts as the weights after the first update
    if not run.model_ema or run.model_ema_warmup or first < MAX_FIRST_WEIGHTS:
        return []
    return [
        f"run.model_ema_decay: {run.model_ema_decay:g} averages over {1 / (1 - run.model_ema_decay):,.0f} updates, but "
        f"this run has {updates:,}: {100 * first:.0f} % of the exported average are the weights of the first update; "
        f"write run.model_ema_warmup=true, or run.model_ema_decay={1 - min(5 / updates, 0.5):.6g}"
    ]
