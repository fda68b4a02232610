"""The run folder: the interface between commands, and what other people's scripts read.

    recipe.yaml environment.json metrics.jsonl summary.json predictions.safetensors
    checkpoints/ figures/ model/ report.html

`summary.json` is written last but for the report: a folder that has it is a finished run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from cskd_hf.data.load import Images
from cskd_hf.engine.checkpoint import list_checkpoints, newest_checkpoint
from cskd_hf.engine.loop import Progress
from cskd_hf.engine.predict import Predictions
from cskd_hf.errors import UserError
from cskd_hf.models.factory import count_parameters
from cskd_hf.recipe import Recipe, dump_recipe, identity, parse_recipe, recipe_hash
from cskd_hf.results import calibration, run_lock
from cskd_hf.results.card import model_readme
from cskd_hf.results.environment import describe_environment
from cskd_hf.results.export import export_model, needs_cskd_hf
from cskd_hf.results.metrics import evaluate_predictions
from cskd_hf.results.report import write_report


def start(recipe: Recipe, num_processes: int) -> tuple[Path, Path | None, bool]:
    """Make or reopen the folder of a resolved recipe. Call it in one process.

    Returns:
        The folder, the checkpoint to resume from, and whether the run is finished already.

    Raises:
        UserError: the folder holds something else, another recipe's run, or any run under `run.resume: never`.
    """
    assert recipe.run.output_dir is not None
    folder, resume = Path(recipe.run.output_dir), recipe.run.resume
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output_dir: {folder} is a file; name a folder")
    held = folder / "recipe.yaml"
    if not held.is_file():
        if folder.is_dir() and any(file.name != run_lock.NAME for file in folder.iterdir()):
            raise UserError(f"run.output_dir: {folder} is not empty and holds no run; name another folder")
    elif resume == "never":
        raise UserError(
            f"run.resume: never, but {folder} holds a run; name another run.output_dir or remove the folder"
        )
    else:
        different = _differences(held, recipe)
        if different and resume != "force":
            raise UserError(
                f"run.output_dir: {folder} holds a run of another recipe; name another folder, or write "
                "run.resume=force to go on with this one\n" + "\n".join(different)
            )
        if (folder / "summary.json").is_file() and not different:
            if not (folder / "report.html").is_file():
                write_report(folder)  # the one thing written after the summary
            return folder, None, True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_lock.lock(folder)
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written: {error}") from None
    (folder / "summary.json").unlink(missing_ok=True)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is not None and (folder / "environment.json").is_file():
        before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["num_processes"]
        if before != num_processes:
            print(
                f"warning: {folder} was trained on {before} processes and goes on with {num_processes}: an update now "
                f"has {num_processes}/{before} as many images, and the learning rate is as before",
                file=sys.stderr,
            )
    try:
        dump_recipe(recipe, held)
        environment = describe_environment(num_processes, recipe.run.mixed_precision or "no")
        _write_json(folder / "environment.json", environment)
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written: {error}") from None
    if checkpoint is None and list_checkpoints(folder / "checkpoints"):
        raise UserError(
            f"{folder / 'checkpoints'}: every checkpoint is damaged; remove them to start from the beginning"
        )
    return folder, checkpoint, False


def _differences(held: Path, recipe: Recipe) -> list[str]:
    try:
        before = identity(parse_recipe(yaml.safe_load(held.read_text(encoding="utf-8")), source=str(held)))
    except (UserError, yaml.YAMLError) as error:
        return [f"{held} cannot be read by this version: {error}"]
    now = identity(recipe)
    lines = []
    for section in now:
        for key in sorted(before[section].keys() | now[section].keys()):
            old, new = before[section].get(key), now[section].get(key)
            if old != new:
                lines.append(f"{section}.{key}: {json.dumps(old)} in the folder, {json.dumps(new)} now")
    return lines


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """One epoch's line of metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: _short(value) for key, value in line.items()}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_metrics(folder: Path, epoch: int) -> None:
    """Keep the lines of the epochs before `epoch`: the others are about to be trained again."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["epoch"] < epoch:
                kept.append(line + "\n")
        except ValueError:
            break  # a kill cut it
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


class Stopwatch:
    """Throughput between two readings of a run's progress."""

    def __init__(self, progress: Progress) -> None:
        self._mark(progress)

    def _mark(self, progress: Progress) -> None:
        self.samples, self.seconds, self.waited = progress.samples, progress.seconds, progress.wait_seconds

    def lap(self, progress: Progress) -> dict[str, float]:
        """Supervised images a second over all processes, and the share of the time spent waiting for data."""
        seconds = max(progress.seconds - self.seconds, 1e-9)
        waited = progress.wait_seconds - self.waited
        samples = progress.samples - self.samples
        self._mark(progress)
        return {"images_per_second": samples / seconds, "data_wait_share": waited / seconds, "seconds": seconds}


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
    from cskd_hf.results import figures  # matplotlib, which a start shall not wait for

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
    _write_json(folder / "summary.json", summary)
    write_report(folder)


def _skip_notes(images: Images, progress: Progress, predictions: Mapping[str, Predictions]) -> list[str]:
    """One note for each unreadable image: where it is and what the decoder said."""
    notes = [f"skipped: {images.train.describe(row)}: {why}" for row, why in sorted(progress.skipped.items())]
    for split, seen in predictions.items():
        source = images.test if split == "test" else images.holdout
        assert source is not None
        notes += [f"skipped: {source.describe(row)}: {why}" for row, why in sorted(seen.skipped.items())]
    return notes


def _short(value: Any) -> Any:
    """Nine digits: more than any curve needs, and the same after a restart summed an epoch in two parts."""
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)
