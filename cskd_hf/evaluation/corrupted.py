"""A network on corrupted test images: error and calibration by kind and severity.

As in D. Hendrycks, T. Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261, and for calibration Y. Ovadia et al.,
"Can you trust your model's uncertainty?", NeurIPS 2019, https://arxiv.org/abs/1906.02530.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from cskd_hf.data.corruptions import LIBRARY, Corruption, prepare_library
from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError
from cskd_hf.evaluation.conditions import Result, facts, heading, load_for_split, predict_finite
from cskd_hf.evaluation.confidence import ece
from cskd_hf.evaluation.formats import number_table
from cskd_hf.evaluation.metrics import nll, top_k_error
from cskd_hf.evaluation.table import definitions, number
from cskd_hf.recipe.sections import DataSection, TransformSection
from cskd_hf.runs.weights import Weights

_METRICS = ("top1_error", "nll", "ece")


def sweep(
    weights: Weights, split: ImageSplit, data: DataSection, accelerator: Accelerator, corruptions: Sequence[Corruption]
) -> Result:
    """The metrics of a split without and under each corruption; a collective under `accelerate launch`.

    Args:
        corruptions: every kind at the same severities.

    Raises:
        UserError: as `evaluate`, the network's images have other channels, or the library does not work.
    """
    trained, results = load_for_split(weights, split, data, accelerator), list[dict[str, Any]]()
    check_channels(trained.transform)
    prepare_library()
    for corruption in (None, *corruptions):
        predictions = predict_finite(weights, trained, split, accelerator, data, corruption=corruption)
        metrics, scaled = measure(predictions.logits, predictions.target, trained.temperature)
        where = {"kind": corruption and corruption.kind, "severity": corruption.severity if corruption else 0}
        results.append({**where, "metrics": metrics, "metrics_scaled": scaled})
    about = {"library": LIBRARY, "seed": corruptions[0].seed, "mean_corruption_error": mean_error(results)}
    found = {"clean": results[0], "corruptions": results[1:]}
    lines = [*heading(weights, split, data, predictions), as_text(results), trained.calibration]
    return Result(lines, {**facts(weights, trained, predictions), **about, **found})


def check_channels(transform: TransformSection) -> None:
    """Raises UserError unless the library takes the network's images."""
    channels = transform.input_size[0]
    if channels not in (1, 3):
        raise UserError(f"--corruptions: needs grey or RGB images; these weights take {channels} channels")


def measure(
    logits: Tensor, target: Tensor, temperature: float | None
) -> tuple[dict[str, float], dict[str, float] | None]:
    """Error, NLL and ECE with the logits as trained, and divided by the temperature; None without one."""
    error = top_k_error(logits, target, 1)

    def at(divisor: float) -> dict[str, float]:
        values = error, nll(logits, target, divisor), ece(logits, target, temperature=divisor)
        return dict(zip(_METRICS, values, strict=True))

    return at(1.0), None if temperature is None else at(temperature)


def as_text(results: Sequence[dict[str, Any]]) -> str:
    """Tables by severity, then of each metric by kind and severity, and what the numbers are.

    Args:
        results: `kind`, `severity`, `metrics` and `metrics_scaled`, from `measure`; the uncorrupted one first.
    """
    clean, metrics = _columns(results[0]), list(_columns(results[0]))
    corrupted = [(str(result["kind"]), str(result["severity"]), _columns(result)) for result in results[1:]]
    kinds, severities = (list(dict.fromkeys(values)) for values in list(zip(*corrupted, strict=True))[:2])
    groups = {level: [values for _, own, values in corrupted if own == level] for level in severities}
    groups = {"0, clean": [clean]} | groups | {"mean": [values for _, _, values in corrupted]}
    lines = [["severity", *metrics]]
    for name, group in groups.items():
        lines.append([name, *(number(fmean(values[metric] for values in group)) for metric in metrics)])
    tables = [number_table(lines)]
    for metric in metrics:
        cells = [[f"{metric} at", *severities, "mean"]]
        for kind in kinds:
            found = [values[metric] for own, _, values in corrupted if own == kind]
            cells.append([kind, *map(number, (*found, fmean(found)))])
        tables.append(number_table(cells))
    tables.append(
        f"mCE, unnormalised: {number(mean_error(results))}, the mean of top1_error; not divided by AlexNet's, which is "
        "known for ImageNet alone"
    )
    return "\n".join(["\n\n".join(tables), *definitions(_METRICS)])


def _columns(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result, and the calibrated ones that a temperature changes."""
    scaled = result["metrics_scaled"] or {}
    return result["metrics"] | {f"{name}, calibrated": scaled[name] for name in _METRICS[1:] if name in scaled}


def mean_error(results: Sequence[dict[str, Any]]) -> float:
    """The mean top-1 error under corruptions, in percent."""
    return fmean(result["metrics"]["top1_error"] for result in results[1:])
