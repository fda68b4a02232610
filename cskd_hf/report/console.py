"""What a person sees: a bar on a terminal, a line an epoch, the result at the end; nothing from other processes."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cskd_hf.batch import NUM_VIEWS
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.splits import Images
from cskd_hf.evaluation.table import as_text, metric_rows
from cskd_hf.models.export import loading_code
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.progress import Progress
from cskd_hf.runs.summary import read_summary


class Console:
    """One run's output on stdout and, for the bar, stderr.

    Args:
        speaks: False in every process but one.
    """

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.bar: tqdm[Any] | None = None

    def say(self, text: str) -> None:
        if self.speaks:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def start(
        self,
        recipe: Recipe,
        images: Images,
        num_parameters: int,
        batches: GlobalBatches,
        progress: Progress,
        epochs: int,
    ) -> None:
        """What is about to run, with the batch's arithmetic, before hours are spent on it."""
        held = "" if images.holdout is None else f", {len(images.holdout):,} held out"
        accumulation = recipe.run.gradient_accumulation_steps
        anchors = batches.global_batch_size * accumulation
        method = ", ".join(f"{key} {value}" for key, value in recipe.to_dict()["method"].items())
        lr, rule = recipe.optimizer.scaled_lr(anchors)
        views = NUM_VIEWS[recipe.method.views]
        counted = "images" if views == 1 else f"anchors ({views * anchors:,} images)"
        self.say(
            f"{recipe.run.output_dir}\n"
            f"  data       {recipe.data.dataset}: {images.num_classes:,} classes, {len(images.train):,} training images"
            f"{held}, {len(images.test):,} test\n"
            f"  model      {recipe.model.model_name}, {num_parameters:,} parameters\n"
            f"  method     {method.removeprefix('name ')}\n"
            f"  update     {recipe.data.batch_size} x {batches.num_processes} processes x {accumulation} accumulated = "
            f"{anchors:,} {counted}, lr {lr:g} {rule}\n"
            f"  precision  {recipe.run.mixed_precision}"
        )
        for note in images.notes:
            self.say(f"  note       {note}")
        if self.speaks and sys.stdout.isatty():
            per_epoch = batches.num_samples
            self.bar = tqdm(
                total=epochs * per_epoch,
                initial=progress.epoch * per_epoch + progress.position,
                unit=" images",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.05,
            )
        self.per_epoch = batches.num_samples

    def first_keys(self, recipe: Recipe, names: Sequence[str], keys: Sequence[str]) -> None:
        """What each process begins with, so that a log shows that no two train on the same images."""
        what = "keys" if NUM_VIEWS[recipe.method.views] > 1 else "images"
        for name, theirs in zip(names, keys, strict=True):
            self.say(f"  {name}: first {what} {theirs}")

    def advance(self, progress: Progress) -> None:
        if self.bar is not None:
            self.bar.update(progress.epoch * self.per_epoch + progress.position - self.bar.n)

    def show(self, terms: Mapping[str, float], progress: Progress) -> None:
        """Loss terms and the share of time spent waiting for data, behind the bar."""
        if self.bar is not None:
            waiting = 100 * progress.wait_seconds / max(progress.seconds, 1e-9)
            values = {name: f"{value:.3f}" for name, value in terms.items()}
            self.bar.set_postfix({**values, "wait": f"{waiting:.0f}%"}, refresh=False)

    def epoch(self, line: Mapping[str, Any], epochs: int) -> None:
        """One line: training loss and error, then error and calibration of each evaluated split."""
        parts = [f"epoch {line['epoch'] + 1:3d}/{epochs}  train loss {line['train/loss']:.3f}"]
        parts += [f"error {line['train/top1_error']:5.2f} %"]
        for split in ("holdout", "test"):
            if f"{split}/top1_error" in line:
                parts += [f"| {split} error {line[f'{split}/top1_error']:5.2f} % ECE {line[f'{split}/ece']:5.2f} %"]
        parts += [
            f"| {line['images_per_second']:,.0f} images/s, {100 * line['data_wait_share']:.0f} % waiting for data"
        ]
        self.say("  ".join(parts))

    def stopped(self, reason: str, progress: Progress) -> None:
        """One line on stderr: who asked, where the run stands, how it goes on."""
        self.close()
        if self.speaks:
            where = f"step {progress.step}, epoch {progress.epoch}, sample {progress.position}"
            print(f"stopped by {reason} at {where}; the same command goes on from there", file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def result(self, folder: Path) -> None:
        """The finished run's numbers with their definitions, and where things lie."""
        if not self.speaks:
            return
        summary = read_summary(folder)
        metrics = summary.metrics
        self.say(f"\ntest split, last epoch\n{as_text(metric_rows(metrics.last, metrics.metrics_scaled))}")
        if metrics.temperature is None:
            self.say("no temperature was fitted: the run had no hold-out set (data.holdout: 0)")
        else:
            self.say(f"calibrated: logits divided by {metrics.temperature:.4f}, fitted on the hold-out set")
        for note in summary.notes:
            self.say(f"note: {note}")
        self.say(f"\nreport   {folder / 'report.html'}\nfigures  {folder / 'figures'}\nweights  {folder / 'model'}\n")
        self.say(loading_code(f"local-dir:{(folder / 'model').as_posix()}", summary.model.needs_cskd_hf))
