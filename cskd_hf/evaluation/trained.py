"""Trained weights on new images: the metrics of a split, the likeliest classes of files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset, Features, Image

from cskd_hf.data.inspect import check_test_values
from cskd_hf.data.normalize import normalize
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError
from cskd_hf.evaluation import answers, table
from cskd_hf.evaluation.details import class_errors
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.evaluation.predictions import NoReadableImageError, predict_split
from cskd_hf.files import write_json, write_tensors, write_text
from cskd_hf.models.load import TrainedModel
from cskd_hf.recipe.sections import DataSection, fill
from cskd_hf.runs.weights import Weights, load_weights


def evaluate(weights: Weights, split: ImageSplit, data: DataSection, json_file: Path | None = None) -> int:
    """Print the metrics of a split; a collective under `accelerate launch`.

    Args:
        weights: what to evaluate.
        split: labels in the order of the weights' classes.
        data: where the split comes from, resolved.
        json_file: also write the metrics there.

    Returns:
        The exit status, 0.

    Raises:
        UserError: the weights do not load, or an image is unreadable, unless `data.on_corrupt` is 'skip'.
    """
    trained = load_weights(weights)
    num_classes = trained.model.num_classes
    if len(split.class_names) > num_classes:
        raise UserError(
            f"data: split {split.name!r} has {len(split.class_names)} classes, but {weights.source} has {num_classes}; "
            "choose a split"
        )
    data = fill(data, {"value_range": trained.value_range})
    problems = check_test_values(split, data, trained.transform)
    accelerator = Accelerator()
    predictions = predict_split(
        trained.model.to(accelerator.device),
        split,
        accelerator,
        data,
        trained.transform,
        progress=True,
    )
    accelerator.end_training()  # otherwise gloo's threads may abort the process at interpreter exit
    if not accelerator.is_main_process:
        return 0
    logits, target, train_images = predictions.logits, predictions.target, trained.train_images
    metrics = evaluate_predictions(logits, target, predictions.features, train_images=train_images)
    scaled = None
    if trained.temperature is not None:
        scaled = evaluate_predictions(logits, target, None, trained.temperature, train_images)
        scaled["recall_at_1"] = metrics["recall_at_1"]  # independent of the temperature
    for problem in problems:
        print(f"note: {problem}")
    print(f"{weights.source} on split {data.test_name!r} of {data.dataset}: {len(predictions.target):,} images")
    for note in split.notes:
        print(f"note: {note}")
    print(table.as_text(table.metric_rows(metrics, scaled)))
    print(trained.calibration)
    if json_file is not None:
        names = trained.class_names or split.class_names
        result: dict[str, Any] = {
            "model": weights.source,
            "images": len(predictions.target),
            "skipped_images": len(predictions.skipped),
            "temperature": trained.temperature,
            "calibration": trained.calibration,
            "metrics": metrics,
            "metrics_scaled": scaled,
            "class_errors": dict(zip(names, class_errors(logits, target), strict=False)),
        }
        write_json(json_file, result)
    return 0


def predict(
    weights: Weights,
    paths: Sequence[str],
    *,
    topk: int = 5,
    batch_size: int = 64,
    workers: int | Literal["auto"] = "auto",
    output_format: str = "table",
    output: Path | None = None,
    features: Path | None = None,
) -> int:
    """Print the likeliest classes of image files; a collective under `accelerate launch`.

    Args:
        weights: what to predict with.
        paths: image files.
        topk: classes per image.
        batch_size: images per forward pass and process.
        workers: processes that load images; "auto": as `data.workers`, none for a single batch.
        output_format: "table", "csv" or "jsonl"; only a table begins with whether the answers are calibrated, else
            standard error gets it.
        output: write the answers there instead of to standard output.
        features: also write a safetensors file there: 'features' (N, D) float32, pooled, before the classifier; the N
            paths are in its metadata, under 'paths', as JSON.

    Returns:
        The exit status: 1 if a file is unreadable. The others are in the answers; it is listed on standard error.

    Raises:
        UserError: the weights do not load.
    """
    trained = load_weights(weights)
    accelerator = Accelerator()
    if workers == "auto" and len(paths) <= batch_size:
        workers = 0  # starting a process takes longer than one batch
    data = DataSection(
        dataset="files",
        batch_size=batch_size,
        workers=workers,
        on_corrupt="skip",
        value_range=trained.value_range,
    )
    if accelerator.is_main_process:
        print(trained.calibration, file=sys.stdout if output_format == "table" and output is None else sys.stderr)
    model, split = trained.model.to(accelerator.device), _split_of_files(paths)
    logits, unreadable, found = torch.empty(0, model.num_classes), dict[int, str](), list[str]()
    try:
        result = predict_split(
            model,
            split,
            accelerator,
            data,
            trained.transform,
            with_features=features is not None,
            progress=True,
        )
    except NoReadableImageError as error:
        unreadable = error.skipped
    else:
        logits, unreadable, found = result.logits, result.skipped, [paths[row] for row in result.row.tolist()]
        if features is not None and accelerator.is_main_process:
            assert result.features is not None
            write_tensors(features, {"features": result.features}, {"paths": json.dumps(found, ensure_ascii=False)})
    accelerator.end_training()  # see evaluate
    if accelerator.is_main_process:
        ranked = answers.rank_classes(trained, logits, found, topk)
        text = answers.as_text(ranked, output_format, min(topk, model.num_classes))
        if output is None:
            sys.stdout.write(text)
        else:
            write_text(output, text)
        _report(paths, unreadable)
    return 1 if unreadable else 0


def _split_of_files(paths: Sequence[str]) -> ImageSplit:
    """Files without labels, as rows of images."""
    images = Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths]}, features=Features({"image": Image(decode=False)})
    )
    return ImageSplit("files", images, np.zeros(len(paths), dtype=np.int64), ("",), np.arange(len(paths)))


def _report(paths: Sequence[str], unreadable: Mapping[int, str]) -> None:
    if unreadable:
        print(f"error: {len(unreadable):,} of {len(paths):,} files could not be read:", file=sys.stderr)
    for row, reason in sorted(unreadable.items()):
        print(f"  {paths[row]}: {reason}", file=sys.stderr)


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
        logits = trained.model(normalize(image[None], mean, std, channels_last=False))
    (answer,) = answers.rank_classes(trained, logits, [path], top_k)
    return list(zip(answer.labels, answer.probs, strict=True))
