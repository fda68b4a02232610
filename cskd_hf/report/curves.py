"""Learning curves as one SVG: milliseconds to draw, sharp at any size, light or dark as the reader's browser is.

Panels are stacked, 360 units wide: a phone shows them at their size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, NamedTuple

from cskd_hf.report.templates import render_template

WIDTH, LEFT, RIGHT = 360, 48, 12
PLOT_HEIGHT, ROW_HEIGHT = 110, 15  # of a panel, and of its title and each row of its legend
NUM_COLORS = 7
MAX_MARKERS = 30  # curves with fewer points mark each, so that a single epoch is visible
MAX_LEGEND = 44  # characters in a row of the legend
LOG_RANGE = 20  # positive losses that span a larger factor get a logarithmic axis
TITLES = {"top1_error": "top-1 error (%)", "nll": "NLL (nats)", "ece": "ECE (%)"}

Points = list[tuple[float, float]]


class Panel(NamedTuple):
    """A title and the curves below it; an axis from zero unless the values ask for logarithms."""

    title: str
    curves: Mapping[str, Points]
    may_be_logarithmic: bool = False


class _Curve(NamedTuple):
    name: str
    color: int
    path: str
    markers: Points


class Drawing(NamedTuple):
    """An SVG document, its alternative text, and its size in CSS pixels."""

    svg: str
    description: str
    width: int
    height: int


def draw_run(lines: Sequence[Mapping[str, Any]]) -> Drawing | None:
    """The learning curves of a run; None before the first epoch.

    Args:
        lines: metrics.jsonl, one dict per epoch.
    """
    panels = run_panels(lines)
    if not panels:
        return None
    titles = ", ".join(panel.title for panel in panels)
    return draw(panels, f"Learning curves over {len(lines)} epochs: {titles}.")


def run_panels(lines: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """Training losses, top-1 error, NLL, ECE and learning rate by epoch, counted from 1; empty panels are left out.

    Args:
        lines: metrics.jsonl, one dict per epoch. If a key is missing, the curve joins its neighbours.
    """
    keys = list(dict.fromkeys(key for line in lines for key in line))
    # These come first, so that a colour has the same meaning in every run.
    terms = ["train/loss", "train/task_loss", "train/kd_loss", *(key for key in keys if key.startswith("train/"))]
    losses = [key for key in dict.fromkeys(terms) if key != "train/top1_error"]
    panels = [Panel("training loss", {key.removeprefix("train/"): points(lines, key) for key in losses}, True)]
    for metric, title in TITLES.items():
        panels.append(
            Panel(title, {split: points(lines, f"{split}/{metric}") for split in ("train", "test", "holdout")})
        )
    panels.append(Panel("learning rate", {"lr": points(lines, "lr")}))
    return [panel for panel in panels if any(panel.curves.values())]


def points(lines: Iterable[Mapping[str, Any]], key: str) -> Points:
    """(epoch from 1, value) of the epochs that have a finite value."""
    return [(line["epoch"] + 1, line[key]) for line in lines if key in line and math.isfinite(line[key])]


def draw(panels: Sequence[Panel], description: str) -> Drawing:
    """Stack the panels; the same curves give the same text."""
    drawn, top = [], 0
    epochs = [x for panel in panels for curve in panel.curves.values() for x, _ in curve]
    first, last = min(epochs), max(epochs)
    margin = 0.5 if first == last else 0.0  # a single epoch stands in the middle

    def to_x(epoch: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (epoch - first + margin) / (last - first + 2 * margin)

    for panel in panels:
        legend = _legend([name for name, curve in panel.curves.items() if curve])
        bottom = top + ROW_HEIGHT * (1 + len(legend)) + PLOT_HEIGHT
        drawn.append(_draw_panel(panel, legend, to_x, top, bottom))
        top = bottom + 2 * ROW_HEIGHT
    height = top + ROW_HEIGHT  # with the axis's label
    step = math.ceil(_step(last - first, 6))
    ticks = [(epoch, round(to_x(epoch), 1)) for epoch in range(int(first), int(last) + 1) if epoch % step == 0]
    svg = render_template(
        "curves.svg.jinja",
        panels=drawn,
        epochs=ticks or [(int(first), to_x(first))],
        description=description,
        width=WIDTH,
        height=height,
        left=LEFT,
        right=WIDTH - RIGHT,
        row=ROW_HEIGHT,
    )
    return Drawing(svg, description, WIDTH, height)


def _draw_panel(
    panel: Panel, legend: list[list[str]], to_x: Callable[[float], float], top: int, bottom: int
) -> dict[str, Any]:
    """What the template draws of one panel."""
    to_height, ticks = _axis([y for curve in panel.curves.values() for _, y in curve], panel.may_be_logarithmic)

    def to_y(value: float) -> float:
        return round(bottom - PLOT_HEIGHT * to_height(value), 1)

    curves = []
    for (name, curve), color in zip(panel.curves.items(), cycle(range(NUM_COLORS)), strict=False):
        if curve:
            places = [(round(to_x(x), 1), to_y(y)) for x, y in curve]
            path = " ".join(f"{x:g},{y:g}" for x, y in places)
            curves.append(_Curve(name, color, path, places if len(places) <= MAX_MARKERS else []))
    return {
        "title": panel.title,
        "top": top,
        "bottom": bottom,
        "legend": [[curve for curve in curves if curve.name in row] for row in legend],
        "curves": curves,
        "ticks": [(f"{tick:g}", to_y(tick)) for tick in ticks],
    }


def _axis(values: Sequence[float], may_be_logarithmic: bool) -> tuple[Callable[[float], float], list[float]]:
    """A function from a value to 0..1, and the ticks."""
    low, high = min(values), max(values)
    if may_be_logarithmic and low > 0 and high > LOG_RANGE * low:
        start, span = math.log10(low), 1.05 * math.log10(high / low)
        decades = range(math.ceil(start), math.floor(start + span) + 1)
        return lambda value: (math.log10(value) - start) / span, [10.0**decade for decade in decades]
    low = min(low, 0.0)
    high = low + 1.05 * (high - low) if high > low else low + 1.0
    step = _step(high - low, 4)
    ticks = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return lambda value: (value - low) / (high - low), ticks


def _step(span: float, count: int) -> float:
    """1, 2 or 5 times a power of ten, for about `count` ticks."""
    rough = max(span, 1e-12) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.999 * rough)


def _legend(names: Sequence[str]) -> list[list[str]]:
    """The names in rows that fit the width."""
    rows: list[list[str]] = []
    for name in names:
        if rows and sum(len(other) + 4 for other in rows[-1]) + len(name) <= MAX_LEGEND:
            rows[-1].append(name)
        else:
            rows.append([name])
    return rows
