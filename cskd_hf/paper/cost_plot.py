"""Our methods' error against the compute of their training, one panel for each image set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.isotonic import isotonic_regression

from cskd_hf.paper.blocks import MeanStd, method_title
from cskd_hf.paper.cells import Grid
from cskd_hf.paper.page_style import PAPER_STYLE, POINTS, SMALL, TWO_COLUMNS_WIDTH, Drawing, legend, text_width
from cskd_hf.paper.text import name_of, number
from cskd_hf.report.figures import PALETTE

_BLACK, _BLUE, _VERMILLION, _GREEN, *_ = PALETTE
_COLORS = {"cross_entropy": _BLACK, "cskd": _BLUE, "mutual_cskd": _VERMILLION, "label_smoothing": _GREEN}
_GREY = "#767676"
_HEIGHT = 3.3  # inches, without the legend
# In points of 1/72 inch:
_PLOT_HEIGHT = 0.78 * _HEIGHT * POINTS  # about, less title and labels
_LINE = 9.0  # between labels
_GAP = 14.0  # between the outermost points and their labels
_STEP = 4.0  # between points of one compute
_TICKS = 16.0  # between ticks of the axis of compute, at least


class _Point(NamedTuple):
    compute: float  # thousand images
    error: MeanStd


_Points = Mapping[int | None, _Point]  # of one method, by budget: None for equal epochs comes first


def error_against_compute(grids: Sequence[Grid]) -> Drawing | None:
    """Top-1 error of finished runs against the compute of their training; None where none has finished.

    A line joins a method's runs at equal epochs to those at equal compute. The grids have the same columns.
    """
    panels = {column: _points(grids, number) for number, column in enumerate(grids[0].block.columns)}
    panels = {column: points for column, points in panels.items() if points}
    if not panels:
        return None
    results = []
    with matplotlib.rc_context(PAPER_STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_WIDTH, _HEIGHT))
        all_axes = figure.subplots(1, len(panels), squeeze=False).flat
        for axes, ((dataset, model), points) in zip(all_axes, panels.items(), strict=True):
            title = f"{name_of(dataset)}, {name_of(model)}"
            axes.set(title=title, xlabel="training compute (thousand images)")
            _draw(axes, points, TWO_COLUMNS_WIDTH * POINTS / len(panels))
            results.append(f"{title}: {_described(points)}.")
        figure.axes[0].set_ylabel("top-1 error (%)")
        legend(figure, [_marker(_BLACK, None), _marker(_BLACK, 1)], ["equal epochs", "equal training compute"])
    what = "Top-1 error in percent, mean ± standard deviation over seeds, against training compute"
    return Drawing(figure, " ".join([f"{what}.", *results]))


def _points(grids: Sequence[Grid], column: int) -> dict[str, dict[int | None, _Point]]:
    """The points of every method; a run of both grids is drawn as one at equal compute."""
    points: dict[str, dict[int | None, _Point]] = {}
    for grid in grids:
        for cell in (row[column] for row in grid.cells):
            if cell.ours is not None and cell.training is not None:
                budgets = points.setdefault(cell.method, {})
                budgets[grid.block.budget] = _Point(cell.training.compute / 1000, cell.ours)
    return {
        method: {budget: point for budget, point in budgets.items() if budget or [*budgets.values()].count(point) == 1}
        for method, budgets in points.items()
    }


def _described(points: Mapping[str, _Points]) -> str:
    return "; ".join(
        f"{method_title(method)} {number(error)} at {compute:,.0f} k images"
        for method, budgets in points.items()
        for compute, error in budgets.values()
    )


def _draw(axes: Axes, points: Mapping[str, _Points], width: float) -> None:
    """Draw the points of an image set; the panel is `width` points of 1/72 inch wide."""
    every = [point for budgets in points.values() for point in budgets.values()]
    least, most = min(point.compute for point in every), max(point.compute for point in every)
    # Labels stand left of the cheapest runs, and right of everything.
    on_left = [method for method in points if max(point.compute for point in points[method].values()) == least]
    on_right = [method for method in points if method not in on_left]
    widths = {method: text_width(method_title(method), SMALL) + 4 for method in points}
    margins = [_GAP + max((widths[method] for method in side), default=0) for side in (on_left, on_right)]
    unit = max(most - least, 0.1 * most) / (width - 30 - sum(margins))  # thousand images per point
    axes.set_xlim(least - margins[0] * unit, most + margins[1] * unit)
    ticks = _ticks([point.compute for point in every], _TICKS * unit)
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    edges = least - 2 * _STEP * unit, most + 2 * _STEP * unit
    axes.spines.bottom.set_bounds(*edges)
    limits = [error.mean + sign * (error.std or 0) for _, error in every for sign in (-1, 1)]
    height = max(max(limits) - min(limits), 0.1)
    axes.set_ylim(min(limits) - 0.05 * height, max(limits) + 0.05 * height)
    axes.grid(visible=False)
    low, high = axes.get_ylim()
    levels = [tick for tick in axes.get_yticks() if low <= tick <= high]
    axes.hlines(levels, *edges, color=PAPER_STYLE["grid.color"], linewidth=PAPER_STYLE["grid.linewidth"], zorder=0)

    places = _side_by_side(points, unit)
    for method, budgets in points.items():
        color, layer = _COLORS.get(method, _GREY), 3 + (method in _COLORS)
        style: dict[str, Any] = {"color": color, "linewidth": 0.8, "alpha": 0.6, "zorder": layer}
        xs, errors = [places[method, budget] for budget in budgets], [error for _, error in budgets.values()]
        axes.plot(xs, [error.mean for error in errors], **style)
        for x, budget, error in zip(xs, budgets, errors, strict=True):
            axes.vlines(x, error.mean - (error.std or 0), error.mean + (error.std or 0), **style)
            axes.add_line(_marker(color, budget, x, error.mean, zorder=layer + 2))
    _label(axes, points, places, on_left, least - _GAP * unit, -unit)
    _label(axes, points, places, on_right, most + _GAP * unit, unit)


def _ticks(computes: Sequence[float], distance: float) -> list[float]:
    """The most frequent values that are far enough from each other."""
    ticks: list[float] = []
    for value, _ in Counter(computes).most_common():
        if all(abs(value - tick) >= distance for tick in ticks):
            ticks.append(value)
    return ticks


def _side_by_side(points: Mapping[str, _Points], unit: float) -> dict[tuple[str, int | None], float]:
    """The x of each point: of one compute and neighbouring errors, they stand side by side."""
    places: dict[tuple[str, int | None], float] = {}
    flat = [(point, method, budget) for method, budgets in points.items() for budget, point in budgets.items()]
    counts: dict[int, int] = {}
    for (compute, _), method, budget in sorted(flat, key=lambda entry: entry[0].error.mean):
        column = round(compute / (4 * _STEP * unit))
        counts[column] = counts[column] + 1 if column in counts else 0
        places[method, budget] = compute + _STEP * unit * (0, 1, -1)[counts[column] % 3]
    return places


def _label(
    axes: Axes,
    points: Mapping[str, _Points],
    places: Mapping[tuple[str, int | None], float],
    methods: Sequence[str],
    x: float,
    outwards: float,
) -> None:
    """A column of labels at `x`, each as close to its method's last point as the others allow.

    Args:
        outwards: a point of 1/72 inch, away from the plot, in the unit of `x`.
    """
    low, high = axes.get_ylim()
    line = _LINE * (high - low) / _PLOT_HEIGHT
    last = {method: [*points[method].items()][-1] for method in methods}
    methods = sorted(methods, key=lambda method: last[method][1].error.mean)
    wanted = np.array([last[method][1].error.mean for method in methods])
    steps = line * np.arange(len(methods))
    heights = isotonic_regression(wanted - steps) + steps if methods else wanted
    for method, y in zip(methods, heights, strict=True):
        budget, point = last[method]
        color = _COLORS.get(method, _GREY)
        axes.plot([places[method, budget], x], [point.error.mean, y], color="#CCCCCC", linewidth=0.5, zorder=1)
        side = "left" if outwards > 0 else "right"
        axes.text(x + 2 * outwards, y, method_title(method), color=color, size=SMALL, ha=side, va="center")


def _marker(color: str, budget: int | None, x: float = 0, y: float = 0, zorder: int = 0) -> Line2D:
    """Filled at equal compute."""
    face = "white" if budget is None else color
    return Line2D([x], [y], marker="o", markersize=4, color=color, markerfacecolor=face, linestyle="", zorder=zorder)
