"""What the hold-out images of a run make of its test logits: calibrated ones, and prediction sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from cskd_hf.data.splits import ImageSplit
from cskd_hf.evaluation.calibrators import FittedMap, compare_maps
from cskd_hf.evaluation.conditions import Result, facts, heading, load_for_split, predict_finite
from cskd_hf.evaluation.conformal import SCORES, expected_coverage, fewest_images, measure_sets, prediction_sets
from cskd_hf.evaluation.formats import text_table
from cskd_hf.evaluation.holdout import find_holdout, read_valid_holdout, selection_notes
from cskd_hf.evaluation.metrics import evaluate_predictions
from cskd_hf.evaluation.table import brackets, definitions, number
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs.weights import Weights

_METRICS = ("top1_error", "nll", "ece", "debiased_ece", "brier")
_SETS = ("found", "mean_size", "median_size", "empty", "singleton", "class_gap")
_SETS_LEGEND = (
    "lac: the classes of at least one probability; aps: the likeliest classes up to a sum of probabilities",
    "wanted, found: share of images whose target is in the set, with a 95 % interval over the test images; percent",
    "expected: where found is in 95 % of cases if hold-out and test images are alike; percent",
    "size: classes in a set; empty, singleton: share of sets with no class, with one; percent",
    "class_gap: |coverage of a class − wanted|, mean over classes; chance raises it for few images; percentage points",
)


def holdout_tables(
    weights: Weights,
    split: ImageSplit,
    data: DataSection,
    accelerator: Accelerator,
    maps: Sequence[str],
    coverages: Sequence[float],
) -> Result:
    """A line per map of the logits and per kind of prediction set; a collective under `accelerate launch`.

    Args:
        weights: a finished run's.
        maps: as for `compare_maps`; none for no table of them.
        coverages: of the prediction sets; none for no table of them.

    Raises:
        UserError: as `evaluate`, or the run has no hold-out predictions.
    """
    option = "--calibration" if maps else "--conformal"
    run = find_holdout(weights, option)
    holdout = read_valid_holdout(run, option, finite=bool(maps))
    trained = load_for_split(weights, split, data, accelerator)
    predictions = predict_finite(weights, trained, split, accelerator, data)
    logits, target, names = predictions.logits, predictions.target, trained.class_names or split.class_names
    lines = [*heading(weights, split, data, predictions), trained.calibration]
    lines += [f"note: {note}" for note in selection_notes(run)]
    content = {**facts(weights, trained, predictions), "holdout_images": len(holdout[1])}
    if maps:
        content["maps"] = _map_results(compare_maps(*holdout, maps), logits, target)
        lines += ["", _map_table(content["maps"]), *definitions(_METRICS)]
    if coverages:
        sets = [_set_results(logits, target, holdout, share, trained.temperature or 1.0) for share in coverages]
        content["conformal"] = [result for results in sets for result in results]
        for result in content["conformal"]:
            if "worst_class" in result:
                result["worst_class"] = names[result["worst_class"]]
        lines += ["", *_set_lines(content["conformal"])]
    return Result(lines, content)


def _map_results(maps: Sequence[FittedMap], logits: Tensor, target: Tensor) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = [{"map": "none", "metrics": evaluate_predictions(logits, target, None)}]
    for fitted in maps:
        metrics = evaluate_predictions(fitted.apply(logits), target, None)
        verdict = {"supported": fitted.supported, "verdict": fitted.verdict}
        results.append({"map": fitted.name, "metrics": metrics, **verdict})
    return results


def _map_table(results: Sequence[dict[str, Any]]) -> str:
    lines = [["map", *_METRICS, "by the hold-out images"]]
    for result in results:
        values = [number(result["metrics"][name]) for name in _METRICS]
        lines.append([result["map"], *values, result.get("verdict", "")])
    return text_table(lines)


def _set_results(
    logits: Tensor, target: Tensor, holdout: tuple[Tensor, Tensor], coverage: float, temperature: float
) -> list[dict[str, Any]]:
    """A result per score; if there are too few hold-out images, one that says so."""
    images, needed = len(holdout[1]), fewest_images(coverage)
    wanted: dict[str, Any] = {"wanted": round(100 * coverage, 9)}
    if images < needed:
        return [wanted | {"problem": f"no sets: {images:,} hold-out images, fewer than the {needed:,} it needs"}]
    wanted["expected"] = [100 * end for end in expected_coverage(images, coverage, len(target))]
    results = []
    for score in SCORES:
        sets = prediction_sets(logits, *holdout, coverage, score, temperature)
        results.append({"score": score, **wanted, **measure_sets(sets, target, coverage)})
    return results


def _set_lines(results: Sequence[dict[str, Any]]) -> list[str]:
    """A line per set, then what the numbers are, then the coverages that have none."""
    sets = [result for result in results if "problem" not in result]
    cells = [["score", "wanted", "expected", *_SETS, "worst class"]]
    for result in sets:
        found, *others = (number(result[name]) for name in _SETS)
        rates = [f"{result['wanted']:g}", brackets(*result["expected"]), f"{found} {brackets(*result['interval'])}"]
        worst = f"{result['worst_class']}: {result['worst_class_coverage']:.0f} % of {result['worst_class_images']}"
        cells.append([result["score"], *rates, *others, worst])
    lines = [text_table(cells), *_SETS_LEGEND] if sets else []
    if any(result["found"] < result["expected"][0] for result in sets):
        chance = "chance alone does this in one line of 40"
        lines.append(
            f"note: coverage below the expected range: the test images may differ from the hold-out set; {chance}"
        )
    return lines + [f"{result['wanted']:g} %: {result['problem']}" for result in results if "problem" in result]
