"""Trained weights on new images: the metrics of a split, the likeliest classes of files."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator

from cskd_hf.data.inspect import check_test_values
from cskd_hf.data.normalize import normalize
from cskd_hf.data.splits import ImageSplit
from cskd_hf.data.transforms import Transform
from cskd_hf.errors import UserError
from cskd_hf.evaluation import answers
from cskd_hf.evaluation.comparison import Compared, measure
from cskd_hf.evaluation.conditions import load_for_split, load_unfolded, predict_finite
from cskd_hf.evaluation.holdout import set_rule
from cskd_hf.evaluation.images import split_of_files
from cskd_hf.evaluation.predictions import NoReadableImageError
from cskd_hf.evaluation.resampling import RESAMPLES
from cskd_hf.files import write_tensors, write_text
from cskd_hf.models.load import TrainedModel
from cskd_hf.recipe.sections import DataSection, fill
from cskd_hf.runs.weights import Weights


def evaluate(
    weights: Sequence[Weights], splits: Sequence[ImageSplit], data: DataSection, count: int = RESAMPLES
) -> list[Compared] | None:
    """The metrics of models on the same images, on the main process; a collective under `accelerate launch`.

    Args:
        splits: the images for each, labels in the order of its classes.
        data: where they come from, resolved.
        count: resamples for the intervals; 0: none.

    Raises:
        UserError: weights do not load or give no finite logits, they have other classes than the split, or an image is
            unreadable, unless `data.on_corrupt` is 'skip'.
    """
    accelerator = Accelerator()
    models: list[Compared] = []
    rows: list[int] = []
    for own, split in zip(weights, splits, strict=True):
        trained = load_for_split(own, split, data, accelerator)
        predictions = predict_finite(own, trained, split, accelerator, data, with_features=True)
        if rows and rows != predictions.row.tolist():
            raise UserError(
                f"{own.source}: could read other images than {weights[0].source}; repair the unreadable ones"
            )
        rows = predictions.row.tolist()
        if accelerator.is_main_process:
            names = trained.class_names or split.class_names
            facts = trained.temperature, trained.calibration, trained.train_images
            models.append(measure(own.source, predictions, names, *facts, count=count))
            for line in split.notes if own is weights[0] else ():
                print(f"note: {line}")
    accelerator.end_training()  # otherwise gloo's threads may abort the process at interpreter exit
    return models if accelerator.is_main_process else None


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
    coverage: float | None = None,
) -> int:
    """Print the likeliest classes of image files; a collective under `accelerate launch`.

    Args:
        workers: "auto": as `data.workers`, none for a single batch.
        output_format: "table", "csv" or "jsonl"; only a table begins with whether the answers are calibrated, else
            standard error gets it.
        output: write the answers there instead of to standard output.
        features: also write a safetensors file there: 'features' (N, D) float32, pooled, before the classifier; the N
            paths are in its metadata, under 'paths', as JSON.
        coverage: print each image's conformal prediction set instead of its `topk` classes; needs a finished run's
            weights.

    Returns:
        The exit status: 1 if a file is unreadable. The others are in the answers; it is listed on standard error.

    Raises:
        UserError: the weights do not load or give no finite logits, or as `set_rule`.
    """
    trained = load_unfolded(weights)
    threshold, rule = None, list[str]()
    if coverage is not None:
        threshold, *rule = set_rule(weights, trained.temperature or 1.0, coverage)
    accelerator = Accelerator()
    if workers == "auto" and len(paths) <= batch_size:
        workers = 0  # starting a process takes longer than one batch
    data = DataSection(dataset="files", batch_size=batch_size, workers=workers, on_corrupt="skip")
    if accelerator.is_main_process:
        facts = sys.stdout if output_format == "table" and output is None else sys.stderr
        print(trained.calibration, *rule, sep="\n", file=facts)
    num_classes, split = trained.model.num_classes, split_of_files(paths)
    if accelerator.is_main_process:
        _note_values(trained, split, data)
    logits, unreadable, found = torch.empty(0, num_classes), dict[int, str](), list[str]()
    try:
        result = predict_finite(weights, trained, split, accelerator, data, with_features=features is not None)
    except NoReadableImageError as error:
        unreadable = error.skipped
    else:
        logits, unreadable, found = result.logits, result.skipped, [paths[row] for row in result.row.tolist()]
        if features is not None and accelerator.is_main_process:
            assert result.features is not None
            write_tensors(features, {"features": result.features}, {"paths": json.dumps(found, ensure_ascii=False)})
    accelerator.end_training()  # see evaluate
    if accelerator.is_main_process:
        ranked = answers.rank_classes(trained, logits, found, topk, threshold)
        text = answers.as_text(ranked, output_format, min(topk, num_classes) if threshold is None else None)
        if output is None:
            sys.stdout.write(text)
        else:
            write_text(output, text)
        _report(paths, unreadable, output if found else None)
    return 1 if unreadable else 0


def _note_values(trained: TrainedModel, split: ImageSplit, data: DataSection) -> None:
    """Print what would be an error for the images of a split; a single dark file may be meant."""
    try:
        check_test_values(split, fill(data, {"value_range": trained.value_range}), trained.transform)
    except UserError as error:
        print(f"note: {str(error).partition('; write data.value_range')[0]}", file=sys.stderr)


def _report(paths: Sequence[str], unreadable: Mapping[int, str], output: Path | None) -> None:
    if unreadable:
        others = "" if output is None else f"; {output} has the others"
        print(f"error: {len(unreadable):,} of {len(paths):,} files could not be read{others}:", file=sys.stderr)
    for row, reason in sorted(unreadable.items()):
        print(f"  {paths[row]}: {reason}", file=sys.stderr)


def predict_image(trained: TrainedModel, path: str, top_k: int = 5) -> list[tuple[str, float]]:
    """(class name, calibrated probability) of an image file's likeliest classes; labels stand in for missing names.

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
