"""Error against training compute: points, spreads, lines between equal epochs and equal compute, labels."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cskd_hf.paper.blocks import Block
from cskd_hf.paper.cells import Cell, Grid, Training
from cskd_hf.paper.cost_plot import error_against_compute
from cskd_hf.report.figures import render

SETS = (("icons", "test_resnet"), ("digits", "resnet10"))
# Method → compute and errors at equal epochs, and at equal compute.
Results = dict[str, tuple[tuple[float, list[float]], tuple[float, list[float]] | None]]
CROWDED: Results = {
    **{name: ((10_000, [20.0, 20.2]), None) for name in ("adacos", "byot", "max_entropy", "mixup", "virtual_softmax")},
    "kd": ((13_333, [20.1, 20.2]), None),
    "cross_entropy": ((10_000, [20.1, 20.3]), (20_000, [19.5, 19.6])),
    "label_smoothing": ((10_000, [20.0, 20.1]), (20_000, [19.4, 19.6])),
    "cskd": ((13_333, [19.9, 20.0]), (20_000, [19.5, 19.7])),
    "mutual_cskd": ((20_000, [19.6, 19.5]), (20_000, [19.6, 19.5])),
    "ddgsd": ((20_000, [19.6, 19.6]), (20_000, [19.6, 19.6])),
    "mixup+cskd": ((23_333, [19.6]), None),
}


def grids_of(results: Results, columns: tuple[tuple[str, str], ...] = SETS) -> list[Grid]:
    grids = []
    for number, budget in enumerate((None, 2)):
        rows = {method: both[number] for method, both in results.items() if both[number] is not None}
        block = Block("evidence", "", "top1_error", tuple(rows), columns, {}, budget=budget)
        cells = [
            tuple(
                Cell(method, *column, dict(enumerate(errors)), {}, None, Training(30, compute, "last epoch"))
                for column in columns
            )
            for method, (compute, errors) in rows.items()
        ]
        grids.append(Grid(block, tuple(cells)))
    return grids


def drawn(results: Results, columns: tuple[tuple[str, str], ...] = SETS) -> Figure:
    drawing = error_against_compute(grids_of(results, columns))
    assert drawing is not None
    FigureCanvasAgg(drawing.figure).draw()
    return drawing.figure


def test_points_are_means_with_their_spread_and_a_line_joins_a_methods_two():
    errors, longer = [30.0, 31.0, 33.0], [28.0, 29.0]
    figure = drawn({"cskd": ((13_333, errors), (20_000, longer)), "ddgsd": ((20_000, [25.0]), (20_000, [25.0]))})
    for axes in figure.axes:
        markers = [line for line in axes.lines if line.get_marker() == "o"]
        points = {(round(float(line.get_ydata()[0]), 6), line.get_markerfacecolor() == "white") for line in markers}
        # One point for a run that is in both grids.
        assert points == {(round(np.mean(errors), 6), True), (28.5, False), (25.0, False)}
        joined = [line for line in axes.lines if line.get_marker() != "o" and line.get_color() == "#0072B2"]
        assert [list(line.get_ydata()) for line in joined] == [[np.mean(errors), 28.5]]
        bars = {tuple(segment[:, 1].round(6)) for bar in axes.collections for segment in bar.get_segments()}
        for values in (errors, longer):
            mean, spread = np.mean(values), np.std(values, ddof=1)
            assert (round(mean - spread, 6), round(mean + spread, 6)) in bars


def test_no_label_overlaps_another_or_leaves_the_page():
    figure = drawn(CROWDED)
    canvas = figure.bbox
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == len(CROWDED)
        for number, box in enumerate(boxes):
            assert canvas.x0 <= box.x0 < box.x1 <= canvas.x1
            assert canvas.y0 <= box.y0 < box.y1 <= canvas.y1
            assert not any(box.overlaps(other) for other in boxes[:number])
            assert not any(
                box.contains(*axes.transData.transform(line.get_xydata()[0]))
                for line in axes.lines
                if line.get_marker() == "o"
            )


def test_equal_runs_give_equal_bytes_and_a_description():
    drawings = [error_against_compute(grids_of(CROWDED, SETS[:1])) for _ in range(2)]
    assert len({render(*drawing) for drawing in drawings if drawing is not None}) == 1
    (_, description), _ = drawings
    assert "Icons, test_resnet: AdaCos 20.10 ± 0.14 at 10 k images; " in description
    assert "Mutual CS-KD 19.55 ± 0.07 at 20 k images; DDGSD" in description


@pytest.mark.parametrize(
    "results", [{"cskd": ((13_333, [0.0]), None)}, {"cskd": ((13_333, [5.0, 5.0]), (20_000, [5.0]))}]
)
def test_single_runs_and_equal_errors_are_drawn(results):
    figure = drawn(results, SETS[:1])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["CS-KD"]


def test_sets_without_a_finished_run_are_left_out():
    results: Results = {"cskd": ((13_333, []), None)}
    assert error_against_compute(grids_of(results)) is None
