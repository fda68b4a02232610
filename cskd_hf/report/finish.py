"""Turn the predictions of a trained model into its summary, weights, figures and report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import nn

from cskd_hf.data.splits import Images
from cskd_hf.evaluation import calibration
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.files import write_json
from cskd_hf.models.export import export_model, needs_cskd_hf
from cskd_hf.models.factory import count_parameters
from cskd_hf.recipe.recipe import Recipe, recipe_hash
from cskd_hf.report.model_readme import model_readme
from cskd_hf.report.report import write_report
from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.progress import Progress


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
    """Metrics, temperature, figures, weights, summary and report of a trained model. Call it in one process.

    Args:
        model: the plain timm model.
        predictions: of "test" and, where there is one, "holdout"; in float32.
    """
    from cskd_hf.report import figures  # matplotlib, which a start shall not wait for

    test, holdout = predictions["test"], predictions.get("holdout")
    temperature = None if holdout is None else calibration.fit_temperature(holdout.logits, holdout.target)
    scaled = None if temperature is None else calibration.apply_temperature(test.logits, temperature)
    skipped = {"train": len(progress.skipped), **{split: len(seen.skipped) for split, seen in predictions.items()}}
    sizes = {"train": len(images.train), "test": len(images.test)}
    if images.holdout is not None:
        sizes["holdout"] = len(images.holdout)
    summary = {
        "recipe_hash": recipe_hash(recipe),
        "seed": recipe.run.seed,
        "epochs": num_epochs,
        "selection": "last",
        "name": folder.resolve().name,
        "dataset": {"name": recipe.data.dataset, "num_classes": images.num_classes, "images": sizes},
        "model": {
            "model_name": recipe.model.model_name,
            "num_parameters": count_parameters(model),
            "needs_cskd_hf": needs_cskd_hf(recipe.model.model_name, model),
        },
        "method": recipe.to_dict()["method"],
        "metrics": {
            "last": evaluate_predictions(test.logits, test.target, test.features),
            "temperature": temperature,
            "metrics_scaled": None if scaled is None else evaluate_predictions(scaled, test.target, test.features),
        },
        "throughput": {
            "images_per_second": progress.samples / max(progress.seconds, 1e-9),
            "data_wait_share": progress.wait_seconds / max(progress.seconds, 1e-9),
            "peak_memory_bytes": peak_memory_bytes,
            "train_seconds": progress.seconds,
            "num_processes": num_processes,
        },
        "skipped_images": skipped,
        "notes": [*images.notes, *_skip_notes(images, progress, predictions)],
    }

    tensors = {"logits": test.logits, "target": test.target, "features": test.features, "row": test.row}
    if holdout is not None:
        tensors |= {"holdout_logits": holdout.logits, "holdout_target": holdout.target, "holdout_row": holdout.row}
    temporary = folder / "predictions.tmp"
    temporary.write_bytes(save(tensors))  # not `save_file`, whose files only their owner may read
    os.replace(temporary, folder / "predictions.safetensors")

    (folder / "figures").mkdir(exist_ok=True)
    figures.learning_curves(read_metrics(folder), folder / "figures" / "learning_curves.png")
    figures.reliability_diagram(test.logits, test.target, temperature, folder / "figures" / "reliability.png")
    readme = model_readme(summary, recipe, folder)
    facts = {"method": summary["method"], "temperature": temperature, "recipe_hash": summary["recipe_hash"]}
    export_model(model, folder / "model", recipe.model, recipe.transform, images.train.class_names, readme, facts)
    write_json(folder / "summary.json", summary)
    write_report(folder)


def _skip_notes(images: Images, progress: Progress, predictions: Mapping[str, Predictions]) -> list[str]:
    """One note for each unreadable image: where it is and what the decoder said."""
    notes = [f"skipped: {images.train.describe(row)}: {why}" for row, why in sorted(progress.skipped.items())]
    for split, seen in predictions.items():
        source = images.test if split == "test" else images.holdout
        assert source is not None
        notes += [f"skipped: {source.describe(row)}: {why}" for row, why in sorted(seen.skipped.items())]
    return notes
