"""Trained weights on images of other classes: how well their scores detect them, and how confident they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from cskd_hf.data.labels import some
from cskd_hf.data.splits import ImageSplit
from cskd_hf.evaluation.conditions import Result, facts, load_for_split, predict_finite, print_notes
from cskd_hf.evaluation.formats import count_images, number_table
from cskd_hf.evaluation.ood import DETECTION, SCORES, ood_detection, ood_scores
from cskd_hf.evaluation.scores import proper_scores
from cskd_hf.evaluation.table import number
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.weights import Weights


def detect(
    weights: Sequence[Weights],
    splits: Sequence[ImageSplit],
    data: DataSection,
    accelerator: Accelerator,
    others: Sequence[tuple[str, ImageSplit]],
) -> Result:
    """How well each model tells other images from a split; a collective under `accelerate launch`.

    Args:
        others: name and images of each out-of-distribution set, from `load_ood`.

    Raises:
        UserError: as `evaluate`.
    """
    models = list[dict[str, Any]]()
    for own, split in zip(weights, splits, strict=True):
        trained = load_for_split(own, split, data, accelerator)
        inside = predict_finite(own, trained, split, accelerator, data)
        sets = []
        for name, other in others:
            print_notes(trained, other, data, accelerator)
            outside = predict_finite(own, trained, other, accelerator, data)
            counts = {"images": len(outside.target), "skipped_images": len(outside.skipped)}
            shared = [label for label in split.class_names if label in other.class_names]
            found = compare(inside.logits, outside.logits, trained.temperature)
            sets.append({"dataset": name, "split": other.name, **counts, "shared_classes": shared, **found})
        trained.model.cpu()
        models.append({**facts(own, trained, inside), "ood": sets})
    lines = [f"note: {note}" for note in splits[0].notes]
    lines += _lines(models, f"split {data.test_name!r} of {data.dataset}")
    return Result(lines, models[0] if len(models) == 1 else {"models": models})


def compare(inside: Tensor, outside: Tensor, temperature: float | None) -> dict[str, Any]:
    """Mean confidence on both sides, and the rates of each score; calibrated ones are None without a temperature.

    Args:
        inside: (N, K) logits of test images.
        outside: (M, K) logits of other images.
    """
    found: dict[str, Any] = {}
    for suffix, divisor in (("", 1.0), ("_scaled", temperature)):
        if divisor is None:
            found |= {f"mean_confidence{suffix}": None, f"scores{suffix}": None}
            continue
        known, other = ood_scores(inside, divisor), ood_scores(outside, divisor)
        confidence = {side: 100 * own["max_prob"].mean().item() for side, own in (("test", known), ("ood", other))}
        for scores, logits in ((known, inside), (other, outside)):
            unused = torch.zeros(len(logits), dtype=torch.int64)
            scores["max_prob"] = proper_scores(logits, unused, divisor).log_odds
        rates = {score: ood_detection(known[score], other[score]) for score in SCORES}
        found |= {f"mean_confidence{suffix}": confidence, f"scores{suffix}": rates}
    return found


def _lines(models: Sequence[dict[str, Any]], place: str) -> list[str]:
    """The models, then the tables of each set, then what the numbers are."""
    prefixes = [f"{number}: " for number in range(1, len(models) + 1)] if len(models) > 1 else [""]
    lines = list[str]()
    for prefix, model in zip(prefixes, models, strict=True):
        lines += [prefix + model["model"], f"   {model['calibration']}"]
    lines.append(f"on {place}: {count_images(models[0]['images'], models[0]['skipped_images'])}")
    for sets in zip(*(model["ood"] for model in models), strict=True):
        lines += _set_lines(prefixes, sets)
    return [*lines, "", *(f"{name}: {definition}" for name, definition in (SCORES | DETECTION).items())]


def _set_lines(prefixes: Sequence[str], sets: Sequence[dict[str, Any]]) -> list[str]:
    """A line per model and score, and the mean confidence; `sets` is what each model makes of the same images."""
    first = sets[0]
    images = count_images(first["images"], first["skipped_images"])
    lines = ["", f"against split {first['split']!r} of {first['dataset']}: {images}"]
    if shared := first["shared_classes"]:
        lines.append(f"warning: {len(shared)} of its classes have names of known ones: {some(shared)}")
    rates = [["score", *DETECTION]]
    confidences = [["mean confidence, percent", "test images", "OOD images"]]
    for prefix, found in zip(prefixes, sets, strict=True):
        for suffix, state, title in (("", "as trained", ""), ("_scaled", "calibrated", ", calibrated")):
            scores = found[f"scores{suffix}"] or {}
            for score, of_score in scores.items():
                if not (suffix and score == "max_logit"):  # the same ranking
                    rates.append([f"{prefix}{score}{title}", *map(number, of_score.values())])
            if scores:
                confidences.append([prefix + state, *map(number, found[f"mean_confidence{suffix}"].values())])
    return [*lines, number_table(rates), number_table(confidences)]
