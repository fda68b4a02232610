"""The tables of one or several evaluated models: values with intervals, differences, JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from cskd_hf.evaluation.comparison import Compared, Difference, Measured
from cskd_hf.evaluation.formats import Cells, escape, latex_table, markdown_table, text_table
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.evaluation.resampling import Interval
from cskd_hf.evaluation.table import brackets, number

INTERVALS = (
    "In brackets: 95 % intervals over the images, Wilson's for top1_error, top5_error and recalls, else the "
    "bootstrap's. They show how far chance in the images moves a value, not the bias of ece, smooth_ece, adaptive_ece "
    "and classwise_ece, which are too high on few images."
)
VERDICTS = (
    "Differences from model 1 on the same resamples. p: McNemar's exact test for top1_error, swaps of the two models' "
    "answers for ece, debiased_ece, smooth_ece and adaptive_ece, else the bootstrap, corrected for the number of "
    "models (Holm). Better or worse: the interval excludes 0 and p is at most 0.05."
)


def columns(models: Sequence[Compared]) -> list[tuple[str, Measured]]:
    """What there is a column of: each model as trained and, with a temperature, calibrated."""
    found = []
    for place, model in enumerate(models, start=1):
        name = f"{place} " if len(models) > 1 else ""
        found.append((f"{name}as trained", model.last))
        if model.scaled is not None:
            found.append((f"{name}calibrated", model.scaled))
    return found


def metric_cells(models: Sequence[Compared], metrics: Collection[str] = DEFINITIONS) -> Cells:
    """The metrics that were measured, with intervals and definition."""
    shown = columns(models)
    rows = [["metric", *(title for title, _ in shown), "definition"]]
    for name, definition in DEFINITIONS.items():
        if name in metrics and any(own.values[name] is not None for _, own in shown):
            rows.append([name, *(_value(own, name) for _, own in shown), definition])
    return rows


def difference_cells(differences: Sequence[Difference]) -> Cells:
    """Every difference; the model's number minus the reference's, 1."""
    rows = [["metric", "models", "difference", "p", "verdict"]]
    for row in differences:
        name = f"{row.metric}, calibrated" if row.calibrated else row.metric
        interval = "" if row.low == row.high else f" {brackets(row.low, row.high)}"  # all resamples agree
        difference = f"{number(row.value)}{interval}"
        p = "<0.001" if row.p < 0.001 else f"{row.p:.3f}"
        rows.append([name, f"{row.model} − 1", difference, p, row.verdict])
    return rows


def as_text(
    models: Sequence[Compared], differences: Sequence[Difference], metrics: Collection[str] = DEFINITIONS
) -> str:
    """Some metrics and their differences, for a terminal."""
    lines = [text_table(metric_cells(models, metrics))]
    differences = [row for row in differences if row.metric in metrics]
    if models[0].last.replicated:
        lines.append(INTERVALS)
    if differences:
        lines += ["", text_table(difference_cells(differences)), VERDICTS]
    return "\n".join(lines)


def as_markdown(models: Sequence[Compared], differences: Sequence[Difference], title: str) -> str:
    """Everything, with a heading."""
    legend = [f"{place}. `{model.source}`: {model.calibration}" for place, model in enumerate(models, start=1)]
    lines = [f"## {title}", "", *legend, "", markdown_table(metric_cells(models)), ""]
    lines += [INTERVALS, ""] if models[0].last.replicated else []
    lines += [markdown_table(difference_cells(differences)), "", VERDICTS, ""] if differences else []
    return "\n".join(lines)


def as_latex(models: Sequence[Compared], differences: Sequence[Difference], title: str) -> str:
    """A table of values, without definitions, and one of differences."""
    names = " ".join(f"{place}: {model.source}." for place, model in enumerate(models, start=1))
    values = f"{title}. {names} {INTERVALS if models[0].last.replicated else ''}".rstrip()
    tables: list[tuple[Cells, str]] = [([row[:-1] for row in metric_cells(models)], values)]
    tables += [(difference_cells(differences), f"{title}. {VERDICTS}")] if differences else []
    return "\n".join(latex_table([list(map(escape, row)) for row in cells], escape(text)) for cells, text in tables)


def as_json(models: Sequence[Compared]) -> list[dict[str, Any]]:
    """Each model's values and intervals, not rounded; null where unknown."""
    return [
        {
            "model": model.source,
            "images": len(model.correct),
            "skipped_images": model.skipped,
            "temperature": model.temperature,
            "calibration": model.calibration,
            "metrics": model.last.values,
            "metrics_scaled": None if model.scaled is None else model.scaled.values,
            "class_errors": {name: row.error for name, row in model.classes.items()},
            "intervals": _intervals(model.last),
            "intervals_scaled": None if model.scaled is None else _intervals(model.scaled),
        }
        for model in models
    ]


def _intervals(measured: Measured) -> dict[str, Interval]:
    return {name: found for name in DEFINITIONS if (found := measured.interval(name)) is not None}


def _value(measured: Measured, name: str) -> str:
    found = measured.interval(name)
    return number(measured.values[name]) + ("" if found is None else f" {brackets(*found)}")
