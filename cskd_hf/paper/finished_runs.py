"""Finished runs side by side: their predictions on the same test images, and a short label for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cskd_hf.errors import UserError, one_line
from cskd_hf.evaluation.rows import check_predictions
from cskd_hf.paper.blocks import method_title
from cskd_hf.recipe.catalog import catalog_name
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.summary import Summary, read_recipe, read_summary


@dataclass(frozen=True)
class FinishedRun:
    """The contents of a run folder.

    Attributes:
        label: distinguishes the runs in a figure.
        class_names: K names.
        logits: (N, K) float32.
        target: (N,) int64.
        features: (N, D) float32.
        row: (N,) int64, indices into the test split.
    """

    folder: Path
    label: str
    recipe: Recipe
    summary: Summary
    class_names: tuple[str, ...]
    logits: Tensor
    target: Tensor
    features: Tensor
    row: Tensor

    @property
    def temperature(self) -> float | None:
        """Divides the logits; None where none was fitted."""
        return self.summary.metrics.temperature


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Finished runs on the same test images, in the given order, with distinct labels.

    Raises:
        UserError: no folder or a duplicate; a folder is not a finished run or is damaged; classes or test images
            differ between two runs.
    """
    if not folders:
        raise UserError("no runs: name one or more run folders")
    resolved = [folder.resolve() for folder in folders]
    for folder, path in zip(folders, resolved, strict=True):
        if resolved.count(path) > 1:
            raise UserError(f"{folder}: given twice; name each run once")
    runs = [_read_run(folder) for folder in folders]
    for run in runs[1:]:
        _require_same_test(runs[0], run)
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def _read_run(folder: Path) -> FinishedRun:
    if not (folder / "summary.json").is_file():
        problem = "not a finished run (no summary.json)" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {problem}; name the run folder of a finished training")
    recipe = read_recipe(folder)
    summary = read_summary(folder, recipe)
    path = folder / "model" / "config.json"
    try:
        class_names = tuple(json.loads(path.read_text(encoding="utf-8"))["label_names"])
        path = folder / "predictions.safetensors"
        tensors = load_file(path)
        logits, target, features, row = (tensors[name] for name in ("logits", "target", "features", "row"))
        check_predictions(logits, target)
    except KeyError as error:
        raise UserError(f"{path}: has no {error}; the file is truncated or of another version") from None
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}") from None
    if len(class_names) != logits.shape[1]:
        raise UserError(f"{folder}: {logits.shape[1]} logits, but model/config.json names {len(class_names)} classes")
    if features.ndim != 2 or row.shape != target.shape or len(features) != len(target):
        shapes = f"features {tuple(features.shape)}, row {tuple(row.shape)}, target {tuple(target.shape)}"
        raise UserError(f"{path}: {shapes}; needs one row per image")
    if not features.isfinite().all():
        raise UserError(f"{path}: features are not finite; leave this run out")
    return FinishedRun(folder, "", recipe, summary, class_names, logits, target, features, row)


def _require_same_test(first: FinishedRun, other: FinishedRun) -> None:
    both, data, other_data = f"{first.folder} and {other.folder}", first.recipe.data, other.recipe.data
    if not _same_dataset(data.dataset, other_data.dataset):
        raise UserError(f"{both}: trained on {data.dataset} and {other_data.dataset}; name runs of one dataset")
    if data.test_split != other_data.test_split:
        splits = f"{data.test_split!r} and {other_data.test_split!r}"
        raise UserError(f"{both}: tested on the splits {splits}; name runs of one split")
    if first.class_names != other.class_names:
        raise UserError(f"{both}: different classes, or in a different order; name runs of one dataset")
    if not (torch.equal(first.row, other.row) and torch.equal(first.target, other.target)):
        raise UserError(f"{both}: different test images; name runs tested on the same images")


def _same_dataset(one: str, other: str) -> bool:
    """A folder's parents differ between machines, and a catalog name stands for its Hub ids."""
    name = catalog_name(one)
    return Path(one).name == Path(other).name or (name is not None and name == catalog_name(other))


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The method; then, only for runs that would share a label, network, settings, seed, folder name, path."""
    labels = [method_title(run.summary.method["name"]) for run in runs]
    for facts in ([run.summary.model.model_name for run in runs], [run.recipe.run.chosen_epoch for run in runs]):
        if len(set(facts)) > 1:
            labels = [f"{label}, {fact}" for label, fact in zip(labels, facts, strict=True)]
    distinctions: list[Callable[[FinishedRun, list[FinishedRun]], str]] = [
        _settings,
        lambda run, _: f", seed {run.summary.seed}",
        lambda run, _: f" ({_printable(run.folder.resolve().name)})",
        lambda run, _: f" ({_printable(str(run.folder.resolve()))})",
    ]
    for describe in distinctions:
        groups: dict[str, list[FinishedRun]] = {}
        for label, run in zip(labels, runs, strict=True):
            groups.setdefault(label, []).append(run)
        labels = [
            label + describe(run, groups[label]) if len(groups[label]) > 1 else label
            for label, run in zip(labels, runs, strict=True)
        ]
    return labels


def _settings(run: FinishedRun, group: list[FinishedRun]) -> str:
    """The method's settings that vary within a group, without paths, say a teacher's, which are too long."""
    return "".join(
        f", {key.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
        for key, value in run.summary.method.items()
        if not (isinstance(value, str) and "/" in value) and any(other.summary.method[key] != value for other in group)
    )


def _printable(name: str) -> str:
    """A file name with question marks for bytes that are not UTF-8, which a figure cannot hold."""
    return name.encode(errors="replace").decode()
