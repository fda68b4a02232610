"""Trained weights on a split under some condition: as they are, at another size, on corrupted or on other images."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from cskd_hf.data.inspect import check_test_values
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Corrupt
from cskd_hf.errors import UserError
from cskd_hf.evaluation.formats import count_images
from cskd_hf.evaluation.predictions import Predictions, predict_split
from cskd_hf.models.load import TrainedModel
from cskd_hf.recipe.sections import DataSection, TransformSection, fill
from cskd_hf.runs.weights import Weights, load_weights


class Result(NamedTuple):
    """What an evaluation prints on the main process, and what it writes as JSON."""

    lines: list[str]
    content: dict[str, Any]


def load_unfolded(weights: Weights) -> TrainedModel:
    """Load weights whose `temperature` divides the logits of `predict_finite`, which are those before it was folded.

    "As trained" so means the same for folded weights as for others.
    """
    trained = load_weights(weights)
    if trained.temperature is None:
        return trained
    return dataclasses.replace(trained, temperature=trained.temperature * trained.folded_temperature)


def load_for_split(weights: Weights, split: ImageSplit, data: DataSection, accelerator: Accelerator) -> TrainedModel:
    """Load weights whose classes the labels of a split number, and print the notes on its pixel values.

    Raises:
        UserError: the weights do not load, have fewer classes, or more and no names; as `print_notes`.
    """
    trained = load_unfolded(weights)
    classes, outputs = len(split.class_names), trained.model.num_classes
    if classes > outputs or (classes < outputs and trained.class_names is None and data.labels == "name"):
        raise UserError(
            f"data: split {split.name!r} has {classes} classes, but {weights.source} has {outputs}"
            + (" without names; write data.labels=index if the data's numbers are theirs" if classes < outputs else "")
            + ("; choose a split" if classes > outputs else "")
        )
    print_notes(trained, split, data, accelerator)
    return trained


def print_notes(trained: TrainedModel, split: ImageSplit, data: DataSection, accelerator: Accelerator) -> None:
    """Print what is odd about the pixel values of a split, on the main process.

    Raises:
        UserError: deep images would come out nearly black.
    """
    problems = check_test_values(split, fill(data, {"value_range": trained.value_range}), trained.transform)
    for problem in problems if accelerator.is_main_process else ():
        print(f"note: {problem}")


def predict_finite(
    weights: Weights,
    trained: TrainedModel,
    split: ImageSplit,
    accelerator: Accelerator,
    data: DataSection,
    *,
    network: Any = None,
    transform: TransformSection | None = None,
    corruption: Corrupt | None = None,
    with_features: bool = False,
) -> Predictions:
    """Finite predictions on a split, of the weights before a temperature was folded into them; a collective.

    Args:
        weights: named in messages.
        trained: what they hold, from `load_unfolded`; `network` and `transform` replace its own.
        split, data, corruption, with_features: as for `predict_split`.

    Raises:
        UserError: as for `predict_split`, or an image's logits have no softmax.
    """
    model = (trained.model if network is None else network).to(accelerator.device)
    predictions = predict_split(
        model,
        split,
        accelerator,
        fill(data, {"value_range": trained.value_range}),
        transform or trained.transform,
        corruption=corruption,
        with_features=with_features,
        progress=True,
    )
    finite = predictions.logits.amax(dim=1).isfinite()  # a single -inf is probability 0
    if not finite.all():
        first = split.describe(int(predictions.row[~finite][0]))
        raise UserError(
            f"{weights.source}: the logits of {int((~finite).sum()):,} of {len(finite):,} images are NaN or infinite, "
            f"first of {first}; its weights are damaged or diverged: name others"
        )
    with torch.inference_mode():  # as the logits were computed
        predictions.logits.mul_(trained.folded_temperature)
    return predictions


def heading(weights: Weights, split: ImageSplit, data: DataSection, predictions: Predictions) -> list[str]:
    """The split's notes, and which model was evaluated on how many images."""
    images = count_images(len(predictions.target), len(predictions.skipped))
    place = f"{weights.source} on split {data.test_name!r} of {data.dataset}: {images}"
    return [*(f"note: {note}" for note in split.notes), place]


def facts(weights: Weights, trained: TrainedModel, predictions: Predictions) -> dict[str, Any]:
    """What every JSON file says of a model."""
    return {
        "model": weights.source,
        "images": len(predictions.target),
        "skipped_images": len(predictions.skipped),
        "temperature": trained.temperature,
        "calibration": trained.calibration,
    }
