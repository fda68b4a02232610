"""The classes of each image, likeliest first, as text: a table for people, CSV and JSON Lines for programs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor

from cskd_hf.evaluation.calibration import apply_temperature
from cskd_hf.evaluation.conformal import class_scores
from cskd_hf.evaluation.table import percent
from cskd_hf.models.load import TrainedModel

_ROWS = 1 << 14  # whose probabilities are in memory, in float64


class Answer(NamedTuple):
    """An image's likeliest classes and their probabilities, of logits divided by the temperature if there is one."""

    path: str
    labels: list[str]
    probs: list[float]


def rank_classes(
    trained: TrainedModel, logits: Tensor, paths: Sequence[str], k: int, threshold: float | None = None
) -> Iterator[Answer]:
    """The likeliest k classes of each image; of equal ones, the first in label order.

    Args:
        trained: its class names and temperature; without names, the class index stands in.
        logits: (N, K).
        threshold: return instead the classes up to this score "lac", the image's conformal prediction set.
    """
    names = trained.class_names or tuple(map(str, range(logits.shape[1])))
    for start in range(0, len(logits), _ROWS):
        scaled = apply_temperature(logits[start : start + _ROWS], trained.temperature or 1.0)
        order = scaled.sort(dim=1, descending=True, stable=True).indices  # also where probabilities round to 0
        ranked = scaled.softmax(dim=1).gather(1, order)
        counts = [k] * len(scaled)
        if threshold is not None:
            counts = (class_scores(scaled) <= threshold).sum(dim=1).tolist()
        most = max(counts, default=0)
        values, labels = ranked[:, :most].tolist(), order[:, :most].tolist()
        for path, probs, row, count in zip(paths[start : start + _ROWS], values, labels, counts, strict=True):
            yield Answer(path, [names[label] for label in row[:count]], probs[:count])


def as_text(answers: Iterable[Answer], output_format: str, k: int | None) -> str:
    """All answers as "csv", "jsonl" or "table"; CSV has columns for k classes, or for the most that an answer has.

    Example:
        >>> answers = [Answer("a.png", ["cat", "dog"], [0.75, 0.25])]
        >>> print(as_text(iter(answers), "csv", k=2), end="")
        path,label_1,prob_1,label_2,prob_2
        a.png,cat,0.75,dog,0.25
        >>> print(as_text(iter(answers), "jsonl", k=2), end="")
        {"path": "a.png", "labels": ["cat", "dog"], "probs": [0.75, 0.25]}
    """
    file = io.StringIO()
    if output_format == "csv":
        if k is None:
            answers = list(answers)
            k = max((len(answer.labels) for answer in answers), default=0)
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["path", *(f"{column}_{rank}" for rank in range(1, k + 1) for column in ("label", "prob"))])
        for path, labels, probs in answers:
            pairs = zip(labels, map(_six_digits, probs), strict=True)
            row = [path, *(value for pair in pairs for value in pair)]
            table.writerow(row + [""] * (1 + 2 * k - len(row)))
    elif output_format == "jsonl":
        for answer in answers:
            line = answer._replace(probs=list(map(_six_digits, answer.probs)))._asdict()
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    else:
        for path, labels, probs in answers:
            print(path if labels else f"{path}\n  no class", file=file)
            for label, prob in zip(labels, probs, strict=True):
                print(f"  {percent(prob):>8s}  {label}", file=file)
    return file.getvalue()


def _six_digits(prob: float) -> float:
    return float(f"{prob:.6g}")
