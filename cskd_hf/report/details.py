"""What a report shows of single classes and images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from cskd_hf.data.pairing import PairedImages
from cskd_hf.data.sampling import Draw
from cskd_hf.evaluation.details import ClassResult, Confusion, class_results, confusions, most_confident_mistakes
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.evaluation.table import percent
from cskd_hf.report.pairs import picture

MAX_CLASSES = 1000  # rows of the table of classes
MAX_MATRIX = 20  # classes of a confusion matrix
MAX_CONFUSIONS = 20
MAX_MISTAKES = 12
TOP_K = 5
PICTURE_SIDE, SMALL_SIDE = 160, 64  # pixels: larger pictures are reduced, small ones need no JPEG


class Evaluated(NamedTuple):
    """A split by name, "test" or "hold-out", its predictions, and its images as the network receives them."""

    split: str
    predictions: Predictions
    images: PairedImages


class ClassRow(NamedTuple):
    """A class; shares in percent, None without an image or a prediction; the class it is most often taken for."""

    name: str
    images: int
    recall: float | None
    precision: float | None
    confused_with: str
    confused: int


class Answer(NamedTuple):
    """One of the most likely classes of an image."""

    name: str
    percent: str
    share: float
    is_true: bool


class Mistake(NamedTuple):
    """A misclassified image."""

    picture: str
    is_small: bool
    name: str
    place: str
    answers: list[Answer]


def describe_details(evaluated: Evaluated, temperature: float | None) -> dict[str, Any]:
    """The values of the template's sections on classes, confusions and, at the temperature, mistakes."""
    predictions, names = evaluated.predictions, evaluated.images.split.class_names
    results = class_results(predictions.logits, predictions.target)
    kinds = confusions(predictions.logits, predictions.target)
    worst = {kind.target: kind for kind in reversed(kinds)}
    rows = [_class_row(result, worst.get(result.label), names) for result in results]
    if len(rows) > MAX_CLASSES:
        rows = sorted(rows, key=lambda row: 101.0 if row.recall is None else row.recall)[:MAX_CLASSES]
    few = len(names) <= MAX_MATRIX
    return {
        "split": evaluated.split,
        "num_images": len(predictions.target),
        "classes": rows,
        "class_names": names,
        "matrix": _matrix(results, kinds) if few else None,
        "confusions": [
            (names[kind.target], names[kind.predicted], kind.images, results[kind.target].images)
            for kind in ([] if few else kinds[:MAX_CONFUSIONS])
        ],
        "mistakes": _mistakes(evaluated, temperature or 1.0),
    }


def _class_row(result: ClassResult, worst: Confusion | None, names: Sequence[str]) -> ClassRow:
    return ClassRow(
        names[result.label],
        result.images,
        100 * result.correct / result.images if result.images else None,
        100 * result.correct / result.predictions if result.predictions else None,
        "" if worst is None else names[worst.predicted],
        0 if worst is None else worst.images,
    )


def _matrix(results: Sequence[ClassResult], kinds: Sequence[Confusion]) -> list[list[int]]:
    matrix = [[result.correct if other is result else 0 for other in results] for result in results]
    for kind in kinds:
        matrix[kind.target][kind.predicted] = kind.images
    return matrix


def _mistakes(evaluated: Evaluated, temperature: float) -> list[Mistake]:
    _, predictions, images = evaluated
    chosen = most_confident_mistakes(predictions.logits, predictions.target, MAX_MISTAKES)
    rows = predictions.row[chosen].tolist()
    if not rows:
        return []
    pictures = images.load([Draw((row,), 0) for row in rows]).images
    paths = [image["path"] for image in images.split.fetch(rows)]
    logits = predictions.logits[chosen].double() / temperature
    order = logits.sort(dim=1, descending=True, stable=True).indices[:, :TOP_K]
    likeliest = zip(logits.softmax(dim=1).gather(1, order).tolist(), order.tolist(), strict=True)
    mistakes = []
    for pixels, row, path, target, (shares, labels) in zip(
        pictures, rows, paths, predictions.target[chosen].tolist(), likeliest, strict=True
    ):
        names = images.split.class_names
        answers = [
            Answer(names[label], percent(share), share, label == target)
            for label, share in zip(labels, shares, strict=True)
        ]
        # The end of the path: no home folder in a page that is passed on.
        place = f"row {images.split.rows[row]}" + (f", {Path(*Path(path).parts[-2:])}" if path else "")
        mistakes.append(Mistake(*_embedded(pixels), names[target], place, answers))
    return mistakes


def _embedded(pixels: torch.Tensor) -> tuple[str, bool]:
    """(C, H, W) uint8 as an address for `src`, and whether it is small."""
    image, file = picture(pixels), io.BytesIO()
    small = max(image.size) <= SMALL_SIDE
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    image.save(file, "PNG" if small else "JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}", small
