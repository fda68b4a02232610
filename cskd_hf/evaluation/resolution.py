"""One network on test images of several sizes, as in Touvron, Vedaldi, Douze, Jégou, *Fixing the train-test resolution
discrepancy*, NeurIPS 2019, https://arxiv.org/abs/1906.06423.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator

from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError, one_line
from cskd_hf.evaluation.conditions import Result, facts, heading, load_for_split, predict_finite
from cskd_hf.evaluation.formats import number_table
from cskd_hf.evaluation.metrics import evaluate_both
from cskd_hf.evaluation.table import definitions, number
from cskd_hf.models.load import TrainedModel
from cskd_hf.recipe.sections import DataSection, TransformSection
from cskd_hf.runs.weights import Weights

_METRICS = ("top1_error", "top5_error", "nll", "ece")


def sweep(
    weights: Weights, split: ImageSplit, data: DataSection, accelerator: Accelerator, heights: Sequence[int]
) -> Result:
    """The metrics of a split at each resolution; a collective under `accelerate launch`.

    Args:
        heights: of the images, in pixels; the widths are in proportion to the weights' own.

    Raises:
        UserError: as `evaluate`, or the network does not run at one of the resolutions.
    """
    trained, results = load_for_split(weights, split, data, accelerator), list[dict[str, Any]]()
    transforms = [at_height(trained.transform, height) for height in heights]
    networks = [network_at(trained.model, transform) for transform in transforms]
    for transform, network in zip(transforms, networks, strict=True):
        predictions = predict_finite(weights, trained, split, accelerator, data, network=network, transform=transform)
        network.cpu()
        metrics, scaled = evaluate_both(predictions.logits, predictions.target, None, trained.temperature)
        results.append({"input_size": list(transform.input_size), "metrics": metrics, "metrics_scaled": scaled})
    own = {"own_input_size": list(trained.transform.input_size), "resolutions": results}
    lines = [*heading(weights, split, data, predictions), *_table(trained, results), trained.calibration]
    return Result(lines, {**facts(weights, trained, predictions), **own})


def at_height(transform: TransformSection, height: int) -> TransformSection:
    """The evaluation transform to images of this height, with the same crop_pct and ratio of the sides."""
    channels, own_height, own_width = transform.input_size
    size = (channels, height, max(1, round(height * own_width / own_height)))
    return transform.model_copy(update={"input_size": size, "test_input_size": None})


def network_at(model: Any, transform: TransformSection) -> Any:
    """A copy of a timm model for images of `transform.input_size`; position embeddings are interpolated by timm.

    Raises:
        UserError: the network does not run on them.
    """
    network = copy.deepcopy(model)
    channels, *size = transform.input_size
    try:
        if hasattr(network, "set_input_size"):  # networks with a fixed grid have it; others take any size
            network.set_input_size(img_size=tuple(size))
        with torch.inference_mode():
            network(torch.zeros(1, channels, *size))
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        shown = "×".join(map(str, size))
        raise UserError(
            f"--resolution: the model does not run on images of {shown}: {one_line(error)}; leave it out"
        ) from error
    return network


def _table(trained: TrainedModel, results: Sequence[dict[str, Any]]) -> list[str]:
    """A line per resolution, the own one marked, then what the numbers are."""
    own = tuple(trained.transform.input_size)
    scaled = [] if trained.temperature is None else ["nll", "ece"]
    lines = [["resolution", *_METRICS, *(f"{name}, calibrated" for name in scaled)]]
    for result in results:
        size = result["input_size"]
        shown = "×".join(map(str, size[1:])) + ("*" if tuple(size) == own else " ")
        values = [result["metrics"][name] for name in _METRICS] + [result["metrics_scaled"][name] for name in scaled]
        lines.append([shown, *map(number, values)])
    marked = f"* the weights' own test size, {'×'.join(map(str, own[1:]))}; crop_pct {trained.transform.crop_pct:g}"
    return [number_table(lines), marked, *definitions(_METRICS)]
