"""Run folders with what the paper's figures read, written without training; and what is seen in a drawing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from safetensors.torch import save_file

from cskd_hf.data.splits import load_split
from cskd_hf.paper.finished_runs import FinishedRun, read_runs
from cskd_hf.recipe.sections import DataSection

DIGITS = [str(digit) for digit in range(10)]
DATA = {"dataset": "digits", "train_split": "train", "test_split": "test", "holdout": "holdout"}
DATA |= {"image_column": "image", "label_column": "label"}


def write_run(
    folder: Path,
    method: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    model_name: str = "resnet18",
    class_names: list[str] = DIGITS,
    temperature: float | None = 2.0,
    num_images: int = 120,
    data: Mapping[str, Any] = DATA,
    **tensors: torch.Tensor,
) -> Path:
    """A run folder with what the figures read: somewhat overconfident predictions, other ones for every seed."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num_images) * 7 % len(class_names)
    noise = torch.randn(num_images, len(class_names), generator=generator)
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, len(class_names)) + noise)
    features = torch.randn(num_images, 8, generator=generator) + target[:, None]
    held = {"logits": logits, "target": target, "features": features, "row": torch.arange(num_images)} | tensors
    (folder / "model").mkdir(parents=True)
    save_file(held, folder / "predictions.safetensors")
    summary = {
        "seed": seed,
        "model": {"model_name": model_name},
        "method": {"name": "cskd", "temperature": 4.0} if method is None else method,
        "metrics": {"temperature": temperature},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "model" / "config.json").write_text(json.dumps({"label_names": class_names}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": dict(data)}))
    return folder


def runs_in(folder: Path, num_runs: int = 2, **keys: Any) -> list[FinishedRun]:
    return read_runs([write_run(folder / f"run-{seed}", seed=seed, **keys) for seed in range(num_runs)])


def panel_of(figure: Figure, label: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left").splitlines()[:1] == [label])
    return axes


def softmax(logits: torch.Tensor) -> np.ndarray:
    exponential = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def texts(figure: Figure) -> str:
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    shown += [axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center")]
    return "\n".join(shown + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


def digits_run(folder: Path, seed: int = 0, **keys: Any) -> Path:
    """Predictions on the first images of the digits' test split."""
    target = torch.from_numpy(load_split(DataSection(**DATA), DIGITS).labels[:120].copy())
    noise = torch.randn(120, 10, generator=torch.Generator().manual_seed(seed))
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, 10) + noise)
    return write_run(folder, seed=seed, **{"target": target, "logits": logits} | keys)
