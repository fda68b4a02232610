"""One rank's part of a run: process group, data, model, run folder."""

from __future__ import annotations

import dataclasses

from accelerate.utils import broadcast_object_list, gather_object
from timm.utils import ModelEmaV3
from torch import nn

from cskd_hf.data.fingerprint import describe_images
from cskd_hf.data.inspect import quick_check
from cskd_hf.data.splits import load_images
from cskd_hf.engine.build import build_batches, build_loader, build_training_objective, training_images
from cskd_hf.engine.cpu_tuning import keep_freed_memory
from cskd_hf.engine.distributed import Ranks, start_accelerator
from cskd_hf.engine.learner import build_learner, checkpoint_bytes
from cskd_hf.engine.objective import check_bf16_on_cpu, dry_run
from cskd_hf.engine.optimizer import allocate_momentum
from cskd_hf.engine.selection import Selection
from cskd_hf.engine.trackers import start_trackers
from cskd_hf.errors import ImageError, one_line
from cskd_hf.evaluation.predictions import Predictions, evaluation_images
from cskd_hf.recipe.recipe import Recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.recipe.sections import fill
from cskd_hf.report.console import Console
from cskd_hf.report.details import Evaluated
from cskd_hf.report.finish import report_again
from cskd_hf.report.pairs import NAME as PAIRS
from cskd_hf.report.pairs import write_pairs
from cskd_hf.report.report import write_report
from cskd_hf.runs import folder as run_folder
from cskd_hf.runs.checkpoint import check_epochs, load_average, load_best, load_checkpoint
from cskd_hf.runs.checkpoint_folders import list_checkpoints
from cskd_hf.runs.disk import check_space
from cskd_hf.runs.progress import Progress, Stopwatch


class Run:
    """Set up in the order of the methods: `load_data`, `build_model`, `open_folder`.

    Args:
        recipe: as loaded; its null keys are filled on the way.

    Attributes:
        described: what the splits hold, to notice that they changed.
        watched: the split evaluated during training: the hold-out split, if there is one.
        learner: what updates change.
        ema: the running average of the weights, or None.
        model: the plain timm model that is evaluated and exported: the average, if there is one.
        progress: epoch, position and step reached.
        selection: the best epoch so far.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.accelerator = start_accelerator(recipe)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.is_main = self.accelerator.is_main_process
        self.ranks = Ranks(self.accelerator)
        self.console = Console(self.is_main)
        self.recipe = resolve(recipe)

    def load_data(self) -> None:
        """Open the splits, and this rank's share of the training batches."""
        with self.accelerator.main_process_first():  # the other ranks then read its cache
            self.images = load_images(self.recipe.data)
        found = {"train_split": self.images.train.name, "test_split": self.images.test.name}
        self.recipe = self.recipe.model_copy(update={"data": fill(self.recipe.data, found)})
        if self.is_main:
            checked = quick_check(self.images, self.recipe.data, self.recipe.transform)
            self.console.checked(checked)
            notes = (*self.images.notes, *checked.notes)
            self.images = dataclasses.replace(self.images, notes=notes, deep=checked.deep)
        self.batches = build_batches(self.recipe, self.images.train, self.accelerator)
        self.loader = build_loader(self.recipe, self.images.train, self.batches, self.accelerator)
        self.watched = "test" if self.images.holdout is None else "holdout"
        assert self.watched == "holdout" or not self.recipe.run.uses_holdout, "the recipe was not validated"
        self.described = describe_images(self.images)
        self.ranks.check_agreement(
            {
                "recipe": recipe_hash(self.recipe),
                **{f"{name} images": " ".join(map(str, split.values())) for name, split in self.described.items()},
            }
        )

    def build_model(self) -> None:
        """Objective, optimizer and schedule, after a dry run."""
        recipe, accelerator = self.recipe, self.accelerator
        objective = build_training_objective(recipe, self.images, accelerator)
        num_classes = self.images.num_classes
        dry_run(objective, recipe.transform, self.batches.smallest, num_classes, accelerator.device)
        if accelerator.device.type == "cpu" and accelerator.mixed_precision == "bf16":
            check_bf16_on_cpu(objective, recipe.transform)
        self.learner = build_learner(recipe, objective, self.batches, accelerator)
        # From here on the recipe says everything the run computes with.
        self.recipe = recipe.replace(
            model={"num_classes": num_classes}, run={"mixed_precision": accelerator.mixed_precision}
        )

    def open_folder(self) -> bool:
        """Create the run folder or resume from its newest checkpoint; False if the run in it is finished."""
        settings = self.recipe.run
        opened = run_folder.open_run(self.recipe, self.described) if self.is_main else None
        opened = broadcast_object_list([opened])[0]
        assert opened is not None
        self.folder, checkpoint = opened.folder, opened.checkpoint
        if opened.finished:
            if self.is_main and not (self.folder / "report.html").is_file():  # the only file written after the summary
                report_again(self.folder, self.recipe, self.images)
            self.console.say(f"{self.folder} is finished; its result:")
            self.console.result(self.folder)
            return False
        learner, self.progress = self.learner, Progress()
        if checkpoint is not None:
            self.progress = load_checkpoint(checkpoint, learner.module, learner.optimizer, self.accelerator.scaler)
            allocate_momentum(learner.optimizer)  # a forced resume may switch to fused SGD
            check_epochs(self.progress, self.recipe.scheduler.total_epochs, checkpoint)
            if opened.other_images:
                self.progress.skipped = {}  # rows of the other images
                self.progress.forget_best()
            self.console.say(f"resuming at {self.progress.place}")
        if self.is_main:
            saved = 0 if checkpoint is None else len(list_checkpoints(checkpoint.parent))
            at_once = settings.checkpoints_total_limit + 1 - saved
            size = checkpoint_bytes(learner.module, learner.network, learner.optimizer, settings)
            check_space(self.folder, size, at_once)
            run_folder.begin_run(opened, self.recipe, self.described, self.accelerator.num_processes)
        self.ema: ModelEmaV3 | None = None
        self.model: nn.Module = learner.network
        if settings.model_ema:
            self.ema = ModelEmaV3(learner.network, decay=settings.model_ema_decay, use_warmup=settings.model_ema_warmup)
            self.model = self.ema.module
            if checkpoint is not None:
                load_average(checkpoint, self.model)
        self.selection = Selection(settings, self.progress, {} if checkpoint is None else load_best(checkpoint))
        self.stopwatch = Stopwatch(self.progress)
        if self.is_main:
            run_folder.cut_metrics(self.folder, self.progress.epoch - bool(self.progress.line))
        start_trackers(self.accelerator, self.recipe, self.progress.step)
        self._announce()
        if self.is_main:
            images = training_images(self.recipe, self.images.train)
            write_pairs(images, self.batches.sampler, self.folder / "figures" / PAIRS)
            if not (self.folder / "report.html").is_file():
                write_report(self.folder)
        return True

    def report(self, predictions: Predictions) -> None:
        """Rewrite the report after an evaluation in training. A full disk does not stop training."""
        if not self.is_main:
            return
        images = evaluation_images(self.images.splits[self.watched], self.recipe.data, self.recipe.transform)
        split = "test" if self.watched == "test" else "hold-out"
        try:
            write_report(self.folder, Evaluated(split, predictions, images))
        except (OSError, ImageError) as error:  # a full disk, or a picture that has since disappeared
            self.console.say(f"note: report.html was not written: {one_line(error)}")

    def _announce(self) -> None:
        """Print what is about to run and, with several ranks, each one's first keys."""
        network, device = self.learner.network, self.accelerator.device
        self.console.start(self.recipe, self.images, network, self.batches, self.progress, device)
        if self.accelerator.num_processes > 1:
            self.batches.start_epoch(self.progress.epoch, self.progress.position)
            keys = gather_object([self.batches.first_keys()])
            self.console.first_keys(self.recipe, self.ranks.names, keys)
