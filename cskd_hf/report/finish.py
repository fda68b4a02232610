"""Turn a trained model's predictions into the results of its run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from cskd_hf.data.splits import Images
from cskd_hf.evaluation.calibration import apply_temperature, fit_temperature
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.files import write_tensors
from cskd_hf.models.export import export_model, needs_cskd_hf
from cskd_hf.models.factory import count_parameters
from cskd_hf.recipe.recipe import Recipe, recipe_hash
from cskd_hf.report.model_readme import model_readme
from cskd_hf.report.report import write_report
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.progress import Progress
from cskd_hf.runs.summary import (
    DatasetSummary,
    MetricsSummary,
    MetricValues,
    ModelSummary,
    Summary,
    Throughput,
    write_summary,
)


def finish(
    folder: Path,
    recipe: Recipe,
    images: Images,
    model: nn.Module,
    predictions: Mapping[str, Predictions],
    progress: Progress,
    *,
    num_epochs: int,
    num_processes: int,
    peak_memory_bytes: int | None,
) -> None:
    """Write predictions, figures, weights, summary and report, in this order. Call it on one rank.

    Args:
        folder: the run folder.
        recipe: resolved.
        images: the splits.
        model: the plain timm model.
        predictions: float32, of "test" and, with a hold-out set, of "holdout".
        progress: at the end of training.
        num_epochs: trained.
        num_processes: ranks.
        peak_memory_bytes: of the accelerator; None without one.
    """
    from cskd_hf.report.figures import learning_curves, reliability_diagram  # matplotlib would delay the start

    test, holdout = predictions["test"], predictions.get("holdout")
    summary = Summary(
        recipe_hash=recipe_hash(recipe),
        seed=recipe.run.seed,
        epochs=num_epochs,
        selection="last",
        name=folder.resolve().name,
        dataset=DatasetSummary(name=recipe.data.dataset, num_classes=images.num_classes, images=_sizes(images)),
        model=ModelSummary(
            model_name=recipe.model.model_name,
            num_parameters=count_parameters(model),
            needs_cskd_hf=needs_cskd_hf(recipe.model.model_name, model),
        ),
        method=recipe.to_dict()["method"],
        metrics=_results(test, holdout),
        throughput=Throughput(
            images_per_second=progress.samples / max(progress.seconds, 1e-9),
            data_wait_share=progress.wait_seconds / max(progress.seconds, 1e-9),
            peak_memory_bytes=peak_memory_bytes,
            train_seconds=progress.seconds,
            num_processes=num_processes,
        ),
        skipped_images={"train": len(progress.skipped)} | {name: len(p.skipped) for name, p in predictions.items()},
        notes=(*images.notes, *_skip_notes(images, progress, predictions)),
    )
    tensors = {"logits": test.logits, "target": test.target, "features": test.features, "row": test.row}
    if holdout is not None:
        tensors |= {"holdout_logits": holdout.logits, "holdout_target": holdout.target, "holdout_row": holdout.row}
    write_tensors(folder / "predictions.safetensors", tensors)
    learning_curves(read_metrics(folder), folder / "figures" / "learning_curves.png")
    temperature = summary.metrics.temperature
    reliability_diagram(test.logits, test.target, temperature, folder / "figures" / "reliability.png")
    facts = {"method": summary.method, "temperature": temperature, "recipe_hash": summary.recipe_hash}
    readme = model_readme(summary, folder)
    export_model(model, folder / "model", recipe.model, recipe.transform, images.train.class_names, readme, facts)
    write_summary(folder, summary)  # now the run counts as finished
    write_report(folder)


def _sizes(images: Images) -> dict[str, int]:
    sizes = {"train": len(images.train), "test": len(images.test)}
    return sizes if images.holdout is None else sizes | {"holdout": len(images.holdout)}


def _results(test: Predictions, holdout: Predictions | None) -> MetricsSummary:
    """Metrics on the test split; the temperature is fitted on the hold-out set alone."""
    last = MetricValues.model_validate(evaluate_predictions(test.logits, test.target, test.features))
    if holdout is None:
        return MetricsSummary(last=last, temperature=None, metrics_scaled=None)
    temperature = fit_temperature(holdout.logits, holdout.target)
    scaled = evaluate_predictions(apply_temperature(test.logits, temperature), test.target, test.features)
    return MetricsSummary(last=last, temperature=temperature, metrics_scaled=MetricValues.model_validate(scaled))


def _skip_notes(images: Images, progress: Progress, predictions: Mapping[str, Predictions]) -> list[str]:
    """One note per unreadable image: its place and what the decoder said."""
    skipped = [(images.train, progress.skipped)]
    if "holdout" in predictions:
        assert images.holdout is not None
        skipped.append((images.holdout, predictions["holdout"].skipped))
    skipped.append((images.test, predictions["test"].skipped))
    return [f"skipped: {split.describe(row)}: {why}" for split, rows in skipped for row, why in sorted(rows.items())]
