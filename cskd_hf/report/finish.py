"""Turn a trained model's predictions into the results of its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import nn

from cskd_hf.data.splits import Images
from cskd_hf.evaluation.calibration import calibrate
from cskd_hf.evaluation.details import class_errors
from cskd_hf.evaluation.metrics import evaluate_both
from cskd_hf.evaluation.predictions import Predictions, evaluation_images
from cskd_hf.evaluation.scores import proper_scores
from cskd_hf.files import write_tensors, write_text
from cskd_hf.models.export import architecture_of, export_model, needs_cskd_hf
from cskd_hf.models.factory import count_parameters, starting_weights
from cskd_hf.recipe.recipe import Recipe, recipe_hash
from cskd_hf.recipe.sections import RunSection
from cskd_hf.report.console import ema_note
from cskd_hf.report.curves import draw_run
from cskd_hf.report.details import Evaluated
from cskd_hf.report.report import CURVES, model_readme, write_report
from cskd_hf.runs import summary as run_summary
from cskd_hf.runs.environment import notes_of_changes, read_environments
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.progress import Progress
from cskd_hf.runs.selected import Selected


def finish(
    folder: Path,
    recipe: Recipe,
    images: Images,
    model: nn.Module,
    predictions: Mapping[str, Predictions],
    progress: Progress,
    *,
    num_processes: int,
    peak_memory_bytes: int | None,
) -> None:
    """Write predictions, figures, weights, summary and report, in this order. Call it on one rank after training.

    Args:
        recipe: resolved.
        model: the plain timm model.
        predictions: float32, of "test" and, with a hold-out set, of "holdout".
        peak_memory_bytes: of the accelerator; None without one.
    """
    test, holdout = predictions["test"], predictions.get("holdout")
    assert test.features is not None
    tensors = {"logits": test.logits, "target": test.target, "features": test.features, "row": test.row}
    if holdout is not None:
        tensors |= {"holdout_logits": holdout.logits, "holdout_target": holdout.target, "holdout_row": holdout.row}
    write_tensors(folder / "predictions.safetensors", tensors)
    dataset = _dataset(recipe, images)
    metrics = _metrics(test, holdout, dataset.train_images_per_class)
    _draw_figures(folder, test, images.train.class_names, metrics.temperature)
    selected = describe_selection(recipe.run, progress)
    summary = run_summary.Summary(
        recipe_hash=recipe_hash(recipe),
        seed=recipe.run.seed,
        epochs=recipe.scheduler.total_epochs,
        selection=recipe.run.selection,
        selected=selected,
        name=folder.resolve().name,
        dataset=dataset,
        model=_model(recipe, model),
        method=recipe.to_dict()["method"],
        metrics=metrics,
        throughput=_throughput(progress, num_processes, peak_memory_bytes),
        skipped_images={"train": len(progress.skipped)} | {name: len(p.skipped) for name, p in predictions.items()},
        notes=(
            *([] if selected is None else [selected.note(recipe.run.selection, recipe.scheduler.total_epochs)]),
            *images.notes,
            *notes_of_changes(read_environments(folder)),
            *ema_note(recipe.run, progress.step if selected is None else selected.updates(progress.step)),
            *_transfer_note(test, metrics.temperature),
            *_skip_notes(images, progress, predictions),
        ),
    )
    facts = {
        "method": summary.method,
        "temperature": metrics.temperature,
        "calibration": metrics.verdict,
        "recipe_hash": summary.recipe_hash,
        "value_range": recipe.data.value_range,
        "background": recipe.transform.background,
        "train_images_per_class": dataset.train_images_per_class,
    }
    readme = model_readme(summary, folder)
    export_model(model, folder / "model", recipe.model, recipe.transform, images.train.class_names, readme, facts)
    run_summary.write_summary(folder, summary)  # from here on the run counts as finished
    write_report(folder, Evaluated("test", test, evaluation_images(images.test, recipe.data, recipe.transform)))


def describe_selection(settings: RunSection, progress: Progress) -> Selected | None:
    """How the hold-out set decided; None if it decided nothing."""
    if not settings.uses_holdout:
        return None
    best_epoch = progress.best_epoch or None
    chosen = best_epoch if settings.selection == "best_holdout" else None
    return Selected(
        epoch=chosen or progress.epoch,
        epochs_trained=progress.epoch,
        metric=settings.selection_metric,
        best_epoch=best_epoch,
        best_value=progress.best_value,
    )


def _dataset(recipe: Recipe, images: Images) -> run_summary.DatasetSummary:
    return run_summary.DatasetSummary(
        name=recipe.data.dataset,
        num_classes=images.num_classes,
        images={name: len(split) for name, split in images.splits.items()},
        train_images_per_class=tuple(np.bincount(images.train.labels, minlength=images.num_classes).tolist()),
        deep=dict(images.deep),
    )


def _model(recipe: Recipe, model: nn.Module) -> run_summary.ModelSummary:
    start = starting_weights(model)
    return run_summary.ModelSummary(
        model_name=recipe.model.model_name,
        num_parameters=count_parameters(model),
        needs_cskd_hf=needs_cskd_hf(architecture_of(recipe.model, model), model),
        finetuned_from=None if start is None else start.name,
        finetuned_license=None if start is None else start.license,
        loaded=None if start is None else start.loaded,
    )


def _draw_figures(folder: Path, test: Predictions, class_names: tuple[str, ...], temperature: float | None) -> None:
    from cskd_hf.report.feature_map import feature_map  # matplotlib would delay the start
    from cskd_hf.report.figures import reliability_diagram

    figures = folder / "figures"
    reliability_diagram(test.logits, test.target, temperature, figures / "reliability.png")
    feature_map(test, class_names, figures / "features.png")
    curves = draw_run(read_metrics(folder))
    if curves is not None:
        write_text(figures / CURVES, curves.svg)


def report_again(folder: Path, recipe: Recipe, images: Images) -> None:
    """Write the report of a finished run from the predictions in its folder."""
    tensors = load_file(folder / "predictions.safetensors")
    test = Predictions(tensors["logits"], tensors["target"], tensors["row"], tensors["features"], skipped={})
    write_report(folder, Evaluated("test", test, evaluation_images(images.test, recipe.data, recipe.transform)))


def _metrics(test: Predictions, holdout: Predictions | None, train_images: Sequence[int]) -> run_summary.MetricsSummary:
    """Metrics on the test split; the temperature is fitted on the hold-out set alone."""
    calibration = None if holdout is None else calibrate(holdout.logits, holdout.target)
    temperature = None if calibration is None else calibration.temperature
    last, scaled = evaluate_both(test.logits, test.target, test.features, temperature, train_images)
    values = {"last": last, "temperature": temperature, "metrics_scaled": scaled, "calibration": calibration}
    return run_summary.MetricsSummary.model_validate(values | {"class_errors": class_errors(test.logits, test.target)})


def _transfer_note(test: Predictions, temperature: float | None) -> list[str]:
    """A warning if the temperature raises the test split's NLL by more than two standard errors."""
    if temperature is None or len(test.target) < 2:
        return []
    before, after = (proper_scores(test.logits, test.target, divisor).nll for divisor in (1.0, temperature))
    rise = after - before
    if not rise.mean() > 2 * rise.std() / len(rise) ** 0.5:
        return []
    return [
        f"the temperature raises the NLL of the test split from {before.mean():.4g} to {after.mean():.4g}: "
        "the hold-out set differs from it"
    ]


def _throughput(progress: Progress, num_processes: int, peak_memory_bytes: int | None) -> run_summary.Throughput:
    seconds = max(progress.seconds, 1e-9)
    return run_summary.Throughput(
        images_per_second=progress.samples / seconds,
        data_wait_share=progress.wait_seconds / seconds,
        peak_memory_bytes=peak_memory_bytes,
        train_seconds=progress.seconds,
        num_processes=num_processes,
    )


def _skip_notes(images: Images, progress: Progress, predictions: Mapping[str, Predictions]) -> list[str]:
    """One note per unreadable image: its place and what the decoder said."""
    skipped = {"train": progress.skipped} | {name: p.skipped for name, p in predictions.items()}
    return [
        f"skipped: {images.splits[name].describe(row)}: {reason}"
        for name, rows in skipped.items()
        for row, reason in sorted(rows.items())
    ]
