"""Train a recipe to its end: updates, evaluation, checkpoints, results."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate.utils import gather_object
from timm.utils import distribute_bn

from cskd_hf.data.loaders import workers_ended
from cskd_hf.engine import failures
from cskd_hf.engine.evaluation import evaluate, predict
from cskd_hf.engine.run import Run
from cskd_hf.engine.stopping import StopRequest
from cskd_hf.engine.updates import Update, training_updates
from cskd_hf.errors import one_line
from cskd_hf.evaluation.predictions import EvaluationStoppedError, Predictions
from cskd_hf.files import advice
from cskd_hf.models.memory import gather_memories
from cskd_hf.recipe.recipe import Recipe, recipe_hash
from cskd_hf.report.finish import finish
from cskd_hf.runs import folder as run_folder
from cskd_hf.runs import lock
from cskd_hf.runs.checkpoint import save_checkpoint


class Outcome(NamedTuple):
    """How a training ended.

    Attributes:
        status: the exit status.
        trained: the run folder, on the main rank of a training that finished in this call.
    """

    status: int
    trained: Path | None = None


def train(recipe: Recipe) -> Outcome:
    """Train to the end, or to the next stop request; every rank calls it.

    Raises:
        UserError: the recipe, its data or the launch is wrong.
    """
    try:
        run = Run(recipe)
        run.load_data()
        run.build_model()
        outcome = fit_and_finish(run) if run.open_folder() else Outcome(0)
    except failures.RunFailedError as failure:
        # No end_training: the process group may be broken, and leaving it would block.
        if str(failure):
            print(f"error: {failure}", file=sys.stderr)
        return Outcome(1)
    except OSError as error:  # before the first update
        todo = advice(error, Path(recipe.run.output_dir or "."))
        if todo is None:
            raise
        print(f"error: {one_line(error)}; {todo} and rerun the same command", file=sys.stderr)
        return Outcome(1)
    finally:
        lock.release_all()
    # gloo's threads may need Python for a moment after the last collective returns, and abort the process if Python is
    # already being finalized (pytorch/pytorch#190489). They end with the last reference to the process group;
    # `run_command` collects cycles that hold one.
    run.accelerator.end_training()
    return outcome


def fit_and_finish(run: Run) -> Outcome:
    """Train, evaluate the final model, write the results.

    Raises:
        RunFailedError: the run cannot continue; the message names the last complete checkpoint.
    """
    stop = StopRequest(run.accelerator, run.recipe.run.max_hours, timeout=0.9 * run.recipe.run.ddp_timeout)
    with stop, workers_ended(run.loader):
        try:
            try:
                if fit(run, stop):
                    run.selection.restore(run.model)
                    splits = dict.fromkeys((run.watched, "test"))
                    predictions = {split: predict(run, split, stop, autocast=False) for split in splits}
                    run.console.close()
                    outcome = write_results(run, predictions)
            except EvaluationStoppedError:
                if run.progress.line:  # not one of the final evaluations, which follow a checkpoint
                    save(run)
        except (EOFError, MemoryError, OSError, RuntimeError) as error:
            failures.ignore_worker_deaths()
            run.console.close()
            line = failures.explain(error, run)
            if line is None:
                raise
            raise failures.RunFailedError(line) from error
    if stop.answer:
        run.console.stopped(stop.reason, run.progress)
        return Outcome(stop.status)
    return outcome


def fit(run: Run, stop: StopRequest) -> bool:
    """Train to the last epoch, or until the hold-out set stops it.

    Returns:
        False if all ranks agreed to a stop request, with a checkpoint saved.
    """
    settings, num_epochs = run.recipe.run, run.recipe.scheduler.total_epochs
    if run.progress.line:  # stopped during an evaluation
        end_epoch(run, stop)
    if run.selection.stops:
        return True
    for update in training_updates(
        run.learner, run.loader, run.batches, run.accelerator, run.progress, settings, num_epochs
    ):
        if run.ema is not None:
            run.ema.update(run.learner.network, step=update.step)
        run.console.advance(run.progress)
        if update.step % settings.logging_steps == 0:
            log_update(run, update)
        if update.ends_epoch:
            average_batch_norm(run)
            begin_line(run, update)
            end_epoch(run, stop)
            if run.selection.stops:
                return True
        elif settings.checkpoint_steps and update.step % settings.checkpoint_steps == 0:
            save(run, update.totals.read(run.accelerator))
        if stop.agreed(ask_now=update.ends_epoch):
            if not update.ends_epoch:
                save(run, update.totals.read(run.accelerator))
            return False
    return True


def log_update(run: Run, update: Update) -> None:
    """Loss terms for the progress bar and the trackers. A device sync, every `run.logging_steps` updates."""
    terms = {name: value.item() for name, value in update.terms.items()}
    run.console.show(terms, run.progress)
    if run.recipe.run.report_to:
        scalars = {f"update/{name}": value for name, value in terms.items()}
        run.accelerator.log(scalars | {"lr": update.lr}, step=update.step)


def average_batch_norm(run: Run) -> None:
    """Average BatchNorm's running statistics over ranks, as timm's train.py does at the end of an epoch."""
    world = run.accelerator.num_processes
    if world > 1:  # they differ by the last update: before each, DDP broadcasts rank 0's
        distribute_bn(run.learner.module, world, reduce=True)
        if run.ema is not None:  # rank 0's, which a checkpoint within the epoch has saved
            distribute_bn(run.model, world, reduce=False)


def begin_line(run: Run, update: Update) -> None:
    """Begin the epoch's line of metrics.jsonl, with the training means; `end_epoch` completes it.

    It is part of the progress, so a run stopped during the evaluation resumes with it.
    """
    totals = update.totals.read(run.accelerator)
    samples = totals.pop("samples")
    means = {f"train/{name}": value / samples for name, value in totals.items()}
    run.progress.line = {"epoch": update.epoch, "step": update.step, "lr": update.lr, **means}
    run.progress.line |= run.stopwatch.lap(run.progress)


def end_epoch(run: Run, stop: StopRequest) -> None:
    """Evaluate if due, write the epoch's line, save a checkpoint."""
    line, num_epochs, predictions = run.progress.line, run.recipe.scheduler.total_epochs, None
    if run.progress.epoch % run.recipe.run.val_interval == 0 or run.progress.epoch == num_epochs:
        values, predictions = evaluate(run, stop)
        line |= values
        if run.recipe.run.uses_holdout:
            run.selection.observe(values.get(f"holdout/{run.recipe.run.selection_metric}"), run.model)
    if run.is_main:
        run_folder.append_metrics(run.folder, line)
    if run.recipe.run.report_to:
        scalars = {name: value for name, value in line.items() if name not in ("epoch", "step")}
        run.accelerator.log(scalars, step=run.progress.step)
    run.console.epoch(line, num_epochs)
    run.progress.line = {}
    save(run)
    if run.selection.stops:
        run.console.stopped_early(run.progress)
    if predictions is not None:
        run.report(predictions)


def save(run: Run, totals: dict[str, float] | None = None) -> None:
    """Save a checkpoint; every rank takes part.

    Args:
        totals: the epoch's sums so far, within an epoch.
    """
    learner, accelerator = run.learner, run.accelerator
    failures.check_weights(learner.network, accelerator.scaler, run.progress.step)
    if accelerator.num_processes > 1:
        for skipped in gather_object([run.progress.skipped]):
            run.progress.skipped.update(skipped)
    memories = gather_memories(learner.module)
    if run.is_main:
        save_checkpoint(
            run.folder / "checkpoints",
            learner.module,
            learner.optimizer,
            accelerator.scaler,
            dataclasses.replace(run.progress, totals=totals or {}),
            recipe_hash(run.recipe),
            run.recipe.run.checkpoints_total_limit,
            None if run.ema is None else run.model,
            memories,
            run.images.train.class_names,
            run.selection.weights,
        )
    accelerator.wait_for_everyone()  # a rank exiting now would abort rank 0 mid-write


def write_results(run: Run, predictions: dict[str, Predictions]) -> Outcome:
    """Weights, summary, figures and report, unless training diverged."""
    divergence = failures.find_divergence(predictions)
    if divergence:
        if run.is_main:
            print(f"error: {divergence}", file=sys.stderr)
        return Outcome(1)
    if not run.is_main:
        return Outcome(0)
    finish(
        run.folder,
        run.recipe,
        run.images,
        run.model,
        predictions,
        run.progress,
        num_processes=run.accelerator.num_processes,
        peak_memory_bytes=torch.cuda.max_memory_allocated() if run.accelerator.device.type == "cuda" else None,
    )
    run.console.result(run.folder)
    return Outcome(0, trained=run.folder)
