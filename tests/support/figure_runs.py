"""Run folders with everything that the paper's figures read, written without training; helpers to inspect a figure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import save_file
from summaries import SUMMARY

from cskd_hf.data.splits import load_split
from cskd_hf.paper.finished_runs import FinishedRun, read_runs
from cskd_hf.recipe.recipe import Recipe, dump_recipe, load_recipe, parse_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.summary import write_summary

DIGITS = [str(digit) for digit in range(10)]


@cache
def _digits_recipe() -> Recipe:
    return resolve(load_recipe("recipes/digits_resnet10.yaml"))


def digits_data() -> DataSection:
    return _digits_recipe().data


def write_run(
    folder: Path,
    method: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    model_name: str = "resnet18",
    class_names: list[str] = DIGITS,
    temperature: float | None = 2.0,
    num_images: int = 120,
    data: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    **tensors: torch.Tensor,
) -> Path:
    """A run folder with overconfident predictions that differ between seeds."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num_images) * 7 % len(class_names)
    noise = torch.randn(num_images, len(class_names), generator=generator)
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, len(class_names)) + noise)
    features = torch.randn(num_images, 8, generator=generator) + target[:, None]
    predictions = {"logits": logits, "target": target, "features": features, "row": torch.arange(num_images)}
    (folder / "model").mkdir(parents=True)
    save_file(predictions | tensors, folder / "predictions.safetensors")
    (folder / "model" / "config.json").write_text(json.dumps({"label_names": class_names}))

    settings = _digits_recipe().to_dict()
    recipe = parse_recipe(
        settings
        | {"method": method or settings["method"]}
        | {"data": settings["data"] | dict(data or {}), "run": settings["run"] | dict(run or {})}
    )
    dump_recipe(recipe, folder / "recipe.yaml")
    changes = {
        "recipe_hash": recipe_hash(recipe),
        "seed": seed,
        "model": SUMMARY.model.model_copy(update={"model_name": model_name}),
        "method": recipe.to_dict()["method"],
        "metrics": SUMMARY.metrics.model_copy(update={"temperature": temperature}),
    }
    write_summary(folder, SUMMARY.model_copy(update=changes))
    return folder


def runs_in(folder: Path, num_runs: int = 2, **settings: Any) -> list[FinishedRun]:
    return read_runs([write_run(folder / f"run-{seed}", seed=seed, **settings) for seed in range(num_runs)])


def digits_run(folder: Path, seed: int = 0, **settings: Any) -> Path:
    """Predictions on the first images of the digits' test split."""
    target = torch.from_numpy(load_split(digits_data(), DIGITS).labels[:120].copy())
    noise = torch.randn(120, 10, generator=torch.Generator().manual_seed(seed))
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, 10) + noise)
    return write_run(folder, seed=seed, **{"target": target, "logits": logits} | settings)


def panel_of(figure: Figure, label: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left").splitlines()[:1] == [label])
    return axes


def texts(figure: Figure) -> str:
    """Everything written in a figure's panels, titles and legends."""
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    shown += [axes.get_title(loc=location) for axes in figure.axes for location in ("left", "center")]
    return "\n".join(shown + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


def softmax(logits: torch.Tensor) -> np.ndarray:
    exponential = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)
