"""Measure trained weights on a split: the metrics of a run's summary, on any data with the same classes.

python -m cskd_hf.evaluate runs/digits_resnet10-cskd-seed0
python -m cskd_hf.evaluate hf-hub:OWNER/NAME data.dataset=FOLDER data.test_split=val
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cskd_hf.engine.cpu_tuning import keep_freed_memory, limit_openmp_spinning
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import parse_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.evaluate", description="Weights → metrics on a test split."
    )
    parser.add_argument("model", help="a run folder, local-dir:FOLDER or hf-hub:OWNER/NAME")
    parser.add_argument(
        "overrides", nargs="*", metavar="data.key=value", help="a run's own data, unless said otherwise"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_intermixed_args(argv)

    limit_openmp_spinning()  # before torch comes with the next line
    from accelerate import Accelerator

    from cskd_hf.data.splits import load_split
    from cskd_hf.evaluation.calibration import apply_temperature
    from cskd_hf.evaluation.metrics import evaluate_predictions
    from cskd_hf.evaluation.predictions import predict_split
    from cskd_hf.evaluation.table import as_text, metric_rows
    from cskd_hf.models.load import load_trained
    from cskd_hf.recipe.resolve import resolve

    trained = load_trained(args.model)
    settings = _settings(trained.run)
    for override in args.overrides:
        if not override.startswith("data."):
            raise UserError(f"{override}: only data.* can be said here; the weights know the rest")
        yaml_io.apply_override(settings, override)
    if "dataset" not in settings["data"]:
        raise UserError("name the images: data.dataset=NAME_OR_FOLDER")
    recipe = resolve(parse_recipe(settings, source=args.model))
    split = load_split(recipe.data, trained.class_names)
    accelerator = Accelerator()
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    seen = predict_split(
        trained.model.to(accelerator.device),
        split,
        accelerator,
        recipe.data,
        trained.transform,
    )
    accelerator.end_training()  # else gloo's threads may abort the process while Python is taken down, see train.py
    if not accelerator.is_main_process:
        return 0
    result: dict[str, Any] = {
        "model": args.model,
        "images": len(seen.target),
        "skipped_images": len(seen.skipped),
        "temperature": trained.temperature,
        "metrics": evaluate_predictions(seen.logits, seen.target, seen.features),
        "metrics_scaled": None,
    }
    if trained.temperature is not None:
        scaled = apply_temperature(seen.logits, trained.temperature)
        result["metrics_scaled"] = evaluate_predictions(scaled, seen.target, seen.features)
    print(f"{args.model} on split {split.name!r} of {recipe.data.dataset}: {len(seen.target):,} images")
    print(as_text(metric_rows(result["metrics"], result["metrics_scaled"])))
    if trained.temperature is not None:
        print(f"calibrated: logits divided by {trained.temperature:.4f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def _settings(run: Path | None) -> dict[str, Any]:
    """The run's recipe, or one that holds nothing but what evaluating needs."""
    if run is not None:
        return yaml_io.read(run / "recipe.yaml")[0]
    return {
        "data": {},
        "model": {"model_name": "the weights' own"},
        "method": {"name": "cross_entropy"},
        "optimizer": {"lr": 1.0},
        "scheduler": {"num_epochs": 1},
    }


if __name__ == "__main__":
    run_command(main)
