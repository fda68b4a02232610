"""Trained weights on new images: the metrics of a split, the likeliest classes of a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.inspect import check_test_values
from cskd_hf.data.normalize import normalize
from cskd_hf.data.splits import load_split
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.evaluation.predictions import predict_split
from cskd_hf.evaluation.table import as_text, metric_rows, percent
from cskd_hf.files import write_json
from cskd_hf.models.load import TrainedModel, load_trained
from cskd_hf.recipe.sections import DataSection, fill


def evaluate(source: str, data: DataSection, json_file: Path | None = None) -> int:
    """Print the metrics of `data.test_split`; a collective under `accelerate launch`.

    Args:
        source: a run folder, `local-dir:FOLDER` or `hf-hub:OWNER/NAME`.
        data: resolved.
        json_file: also write the metrics there.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such weights, images or split; other classes; an unreadable image, unless `data.on_corrupt` is
            'skip'.
    """
    trained = load_trained(source)
    split = load_split(data, trained.class_names)
    data = fill(data, {"value_range": trained.value_range})
    problems = check_test_values(split, data)
    accelerator = Accelerator()
    predictions = predict_split(
        trained.model.to(accelerator.device),
        split,
        accelerator,
        data,
        trained.transform,
    )
    accelerator.end_training()  # otherwise gloo's threads may abort the process at interpreter exit
    if not accelerator.is_main_process:
        return 0
    metrics = evaluate_predictions(predictions.logits, predictions.target, predictions.features)
    scaled = None
    if trained.temperature is not None:
        scaled = evaluate_predictions(predictions.logits, predictions.target, None, trained.temperature)
        scaled["recall_at_1"] = metrics["recall_at_1"]  # independent of the temperature
    for problem in problems:
        print(f"note: {problem}")
    print(f"{source} on split {split.name!r} of {data.dataset}: {len(predictions.target):,} images")
    for note in split.notes:
        print(f"note: {note}")
    print(as_text(metric_rows(metrics, scaled)))
    print(trained.calibration)
    if json_file is not None:
        result: dict[str, Any] = {
            "model": source,
            "images": len(predictions.target),
            "skipped_images": len(predictions.skipped),
            "temperature": trained.temperature,
            "calibration": trained.calibration,
            "metrics": metrics,
            "metrics_scaled": scaled,
        }
        write_json(json_file, result)
    return 0


def predict(source: str, images: Sequence[str], top_k: int) -> int:
    """Print the likeliest classes of each image file.

    Returns:
        The exit status, 0.

    Raises:
        UserError: no such weights; a file is not a whole image.
    """
    trained = load_trained(source)
    print(trained.calibration)
    for path in images:
        try:
            likeliest = predict_image(trained, path, top_k)
        except UnreadableImageError as error:
            raise UserError(f"{path}: {error}") from None
        print(path)
        for name, probability in likeliest:
            print(f"  {percent(probability):>8s}  {name}")
    return 0


def predict_image(trained: TrainedModel, path: str, top_k: int = 5) -> list[tuple[str, float]]:
    """The likeliest classes of an image file.

    Returns:
        (class name, calibrated probability), likeliest first; the label as name if the weights name no classes.

    Raises:
        UnreadableImageError: the file is not a whole image.
    """
    transform = Transform(trained.transform, is_training=False, value_range=trained.value_range)
    image = transform({"bytes": None, "path": path}, seed=0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (trained.transform.mean, trained.transform.std))
    with torch.inference_mode():
        logits = trained.model(normalize(image[None], mean, std, channels_last=False))[0]
    probability = torch.softmax(logits / (trained.temperature or 1.0), dim=-1)
    top = probability.topk(min(top_k, len(probability)))
    names = trained.class_names or tuple(map(str, range(len(probability))))
    return [(names[label], value) for value, label in zip(top.values.tolist(), top.indices.tolist(), strict=True)]
