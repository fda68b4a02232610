"""The metrics table: name, value, calibrated value, definition."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cskd_hf.evaluation.formats import Cells
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.runs.summary import MetricValues


class MetricRow(NamedTuple):
    """One metric; `calibrated` is None where no temperature was fitted."""

    name: str
    value: float
    calibrated: float | None
    definition: str


def metric_rows(
    metrics: MetricValues | Mapping[str, float | None], scaled: MetricValues | Mapping[str, float | None] | None = None
) -> list[MetricRow]:
    """One row per metric that was measured; `scaled` are those with the logits divided by the temperature."""
    calibrated = {} if scaled is None else dict(scaled)
    return [
        MetricRow(name, value, calibrated.get(name), DEFINITIONS[name])
        for name, value in dict(metrics).items()
        if value is not None
    ]


def metric_cells(rows: Sequence[MetricRow]) -> Cells:
    """Header and rows; no calibrated column without a temperature."""
    cells = [["metric", "as trained", "calibrated", "definition"]]
    cells += [[name, number(value), number(scaled), definition] for name, value, scaled, definition in rows]
    if all(row.calibrated is None for row in rows):
        cells = [[name, value, definition] for name, value, _, definition in cells]
    return cells


def number(value: float | None) -> str:
    """Four significant digits; a dash for a value that was not measured."""
    return "–" if value is None else f"{value:.4g}"


def brackets(low: float, high: float) -> str:
    """The ends of an interval."""
    return f"[{number(low)}, {number(high)}]"


def definitions(names: Iterable[str]) -> list[str]:
    """A line for each metric, to print below a table with a column for each."""
    return [f"{name}: {DEFINITIONS[name]}" for name in names]


def percent(probability: float) -> str:
    """A probability in percent, with two decimals; ">99.9 %" above: no finite hold-out set supports 100 %."""
    return ">99.9 %" if probability > 0.999 else f"{100 * probability:.2f} %"
