"""Finished runs side by side: what each predicted on the same test images, and a short name for each.

Of a run folder's recipe only the data section is read, so that runs of other versions can be drawn too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cskd_hf.errors import UserError
from cskd_hf.evaluation.metrics import check_predictions
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.catalog import entry_of
from cskd_hf.recipe.sections import DataSection

# As the methods' papers write them; other words stay as they are.
_SPELLINGS = {
    "cskd": "CS-KD",
    "kd": "KD",
    "pskd": "PS-KD",
    "tfkd": "Tf-KD",
    "byot": "BYOT",
    "ddgsd": "DDGSD",
    "adacos": "AdaCos",
    "e": "E",
}


@dataclass(frozen=True)
class FinishedRun:
    """A run folder, read.

    Attributes:
        label: what tells it from the others: method, then as much as is needed of network, settings, seed, folder.
        method: the recipe's section, as the summary has it.
        class_names: K names.
        logits: (N, K) float32.
        target: (N,) int64.
        features: (N, D) float32.
        row: (N,) int64: which image of the test split.
        temperature: divides the logits; None where none was fitted.
        data: where the images are.
    """

    folder: Path
    label: str
    method: dict[str, Any]
    model_name: str
    seed: int
    class_names: tuple[str, ...]
    logits: Tensor
    target: Tensor
    features: Tensor
    row: Tensor
    temperature: float | None
    data: DataSection


def read_runs(folders: Sequence[Path]) -> list[FinishedRun]:
    """Finished runs on the same test images, in the order given, each with a label of its own.

    Raises:
        UserError: none is given, or one twice; a folder is no finished run or is damaged; two runs have other classes
            or were tested on other images.
    """
    if not folders:
        raise UserError("no runs: name one or more run folders")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"{folder}: given twice; name each run once")
    runs = [_read_run(folder) for folder in folders]
    for run in runs[1:]:
        _require_same_test(runs[0], run)
    return [replace(run, label=label) for run, label in zip(runs, _labels(runs), strict=True)]


def _read_run(folder: Path) -> FinishedRun:
    if not (folder / "summary.json").is_file():
        what = "no finished run (no summary.json)" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; name the run folder of a finished training")
    read = folder / "summary.json"
    try:
        summary = json.loads(read.read_text(encoding="utf-8"))
        method, seed = dict(summary["method"]), int(summary["seed"])
        model_name, temperature = str(summary["model"]["model_name"]), summary["metrics"]["temperature"]
        str(method["name"])
        read = folder / "model" / "config.json"
        class_names = tuple(map(str, json.loads(read.read_text(encoding="utf-8"))["label_names"]))
        read = folder / "recipe.yaml"
        data = DataSection.model_validate_json(json.dumps(yaml_io.read(read)[0]["data"]))
        read = folder / "predictions.safetensors"
        held = load_file(read)
        logits, target, features, row = (held[name] for name in ("logits", "target", "features", "row"))
        check_predictions(logits, target)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{read}: has no {error}; cut, or written by another version") from None
    except ValidationError as error:
        raise UserError(f"{read}: data: {error.errors(include_url=False)[0]['msg']}; another version's") from None
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise UserError(f"{read}: cannot be read: {' '.join(str(error).split())}") from None
    if len(class_names) != logits.shape[1]:
        raise UserError(f"{folder}: {logits.shape[1]} logits, but model/config.json names {len(class_names)} classes")
    if features.ndim != 2 or row.shape != target.shape or len(features) != len(target):
        shapes = f"features {tuple(features.shape)}, row {tuple(row.shape)}, target {tuple(target.shape)}"
        raise UserError(f"{read}: {shapes}; needs one row for each image")
    if not features.isfinite().all():
        raise UserError(f"{read}: features are not finite")
    return FinishedRun(
        folder, "", method, model_name, seed, class_names, logits, target, features, row, temperature, data
    )


def _require_same_test(first: FinishedRun, other: FinishedRun) -> None:
    both = f"{first.folder} and {other.folder}"
    ours, theirs = first.data, other.data
    if not _same_set(ours.dataset, theirs.dataset):
        raise UserError(f"{both}: trained on {ours.dataset} and {theirs.dataset}; draw the runs of one data set")
    if ours.test_split != theirs.test_split:
        raise UserError(f"{both}: tested on the splits {ours.test_split!r} and {theirs.test_split!r}; draw one split's")
    if first.class_names != other.class_names:
        raise UserError(f"{both}: other classes, or in another order; draw the runs of one data set")
    if not (torch.equal(first.row, other.row) and torch.equal(first.target, other.target)):
        raise UserError(f"{both}: other test images; draw runs that were tested on the same ones")


def _same_set(one: str, other: str) -> bool:
    """One folder may lie elsewhere on another machine, and a set of the catalog has its Hub id for a second name."""
    entry = entry_of(one)
    return Path(one).name == Path(other).name or (entry is not None and entry is entry_of(other))


def _labels(runs: Sequence[FinishedRun]) -> list[str]:
    """The method; then, only where it is needed to tell two runs apart, network, settings, seed, folder, whole path."""
    labels = [_spelled(run.method["name"]) for run in runs]
    if len({run.model_name for run in runs}) > 1:
        labels = [f"{label}, {run.model_name}" for label, run in zip(labels, runs, strict=True)]
    methods = [[other.method for other, name in zip(runs, labels, strict=True) if name == label] for label in labels]
    labels = [
        f"{label}{_differing(run.method, alike)}" for label, run, alike in zip(labels, runs, methods, strict=True)
    ]
    further: list[Callable[[FinishedRun], str]] = [
        lambda run: f", seed {run.seed}",
        lambda run: f" ({_shown(run.folder.resolve().name)})",
        lambda run: f" ({_shown(str(run.folder.resolve()))})",
    ]
    for describe in further:
        count = Counter(labels)
        labels = [
            f"{label}{describe(run)}" if count[label] > 1 else label for label, run in zip(labels, runs, strict=True)
        ]
    return labels


def _spelled(name: str) -> str:
    return " ".join(_SPELLINGS.get(word, word) for word in str(name).split("_"))


def _differing(method: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """The settings in which a method is not the same as the others of its name."""
    words = ""
    for key, value in method.items():
        if isinstance(value, str) and "/" in value:
            continue  # a path, say of a teacher, is too long for a label
        if any(key not in other or other[key] != value for other in others):
            words += f", {key.replace('_', ' ')} {f'{value:g}' if isinstance(value, float) else value}"
    return words


def _shown(name: str) -> str:
    """A file name that is not UTF-8 cannot be written into a figure: its strange bytes become question marks."""
    return name.encode(errors="replace").decode()
