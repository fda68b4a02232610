"""Trained weights on images of other classes: how well their scores detect them, and how confident they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from cskd_hf.data.labels import some
from cskd_hf.data.splits import ImageSplit
from cskd_hf.evaluation.conditions import facts, load_for_split, predict_finite, print_notes
from cskd_hf.evaluation.formats import count_images, number_table
from cskd_hf.evaluation.ood import DETECTION, SCORES, ood_detection, ood_scores
from cskd_hf.evaluation.table import number
from cskd_hf.files import write_json
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.weights import Weights


def detect(
    weights: Sequence[Weights],
    splits: Sequence[ImageSplit],
    data: DataSection,
    others: Sequence[tuple[str, ImageSplit]],
    json_file: Path | None = None,
) -> int:
    """Print how well each model tells other images from a split; a collective under `accelerate launch`.

    Args:
        weights, splits, data: as for `cskd_hf.evaluation.trained.evaluate`.
        others: name and images of each out-of-distribution set, from `load_ood`.
        json_file: also write the results there.

    Returns:
        The exit status, 0.

    Raises:
        UserError: as `evaluate`.
    """
    accelerator, models = Accelerator(), list[dict[str, Any]]()
    for own, split in zip(weights, splits, strict=True):
        trained = load_for_split(own, split, data)
        print_notes(trained, split, data, accelerator)
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
    accelerator.end_training()  # otherwise gloo's threads may abort the process at interpreter exit
    if not accelerator.is_main_process:
        return 0
    for note in splits[0].notes:
        print(f"note: {note}")
    print(as_text(models, f"split {data.test_name!r} of {data.dataset}"))
    if json_file is not None:
        write_json(json_file, models[0] if len(models) == 1 else {"models": models})
    return 0


def compare(inside: Tensor, outside: Tensor, temperature: float | None) -> dict[str, Any]:
    """Mean confidence on both sides, and the rates of each score; with calibrated probabilities too if there is one.

    Args:
        inside: (N, K) logits of test images.
        outside: (M, K) logits of other images.
        temperature: divides the logits; None leaves the calibrated values None.
    """
    found: dict[str, Any] = {}
    for suffix, divisor in (("", 1.0), ("_scaled", temperature)):
        if divisor is None:
            found |= {f"mean_confidence{suffix}": None, f"scores{suffix}": None}
            continue
        known, other = ood_scores(inside, divisor), ood_scores(outside, divisor)
        confidence = {side: 100 * own["max_prob"].mean().item() for side, own in (("test", known), ("ood", other))}
        rates = {score: ood_detection(known[score], other[score]) for score in SCORES}
        found |= {f"mean_confidence{suffix}": confidence, f"scores{suffix}": rates}
    return found


def as_text(models: Sequence[dict[str, Any]], place: str) -> str:
    """For each set a line per score, and the mean confidence; then what the numbers are."""
    several, lines = len(models) > 1, list[str]()
    for place_of, model in enumerate(models, start=1):
        lines += [f"{place_of}: {model['model']}" if several else model["model"], f"   {model['calibration']}"]
    lines.append(f"on {place}: {count_images(models[0]['images'], models[0]['skipped_images'])}")
    for number_of, first in enumerate(models[0]["ood"]):
        images = count_images(first["images"], first["skipped_images"])
        lines += ["", f"against split {first['split']!r} of {first['dataset']}: {images}"]
        if first["shared_classes"]:
            shared = first["shared_classes"]
            lines.append(f"warning: {len(shared)} of its classes have names of known ones: {some(shared)}")
        cells = [["score", *DETECTION]]
        confidence = [["mean confidence, percent", "test images", "OOD images"]]
        for place_of, model in enumerate(models, start=1):
            prefix = f"{place_of}: " if several else ""
            found = model["ood"][number_of]
            for suffix, title in (("", ""), ("_scaled", ", calibrated")):
                if found[f"scores{suffix}"] is None:
                    continue
                for score, rates in found[f"scores{suffix}"].items():
                    if not (suffix and score == "max_logit"):  # the same ranking
                        cells.append([f"{prefix}{score}{title}", *map(number, rates.values())])
                means = map(number, found[f"mean_confidence{suffix}"].values())
                confidence.append([f"{prefix}{'calibrated' if suffix else 'as trained'}", *means])
        lines += [number_table(cells), number_table(confidence)]
    lines += ["", *(f"{name}: {definition}" for name, definition in (SCORES | DETECTION).items())]
    return "\n".join(lines)
