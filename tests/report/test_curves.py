from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from cskd_hf.report.curves import PLOT_HEIGHT, draw_run, run_panels

SVG = "{http://www.w3.org/2000/svg}"


def epoch_lines(num_epochs: int, evaluate_every: int = 1) -> list[dict[str, Any]]:
    lines = []
    for epoch in range(num_epochs):
        task_loss = 4.0 / (1 + epoch)
        line = {"epoch": epoch, "step": 10 * (epoch + 1), "lr": 0.1 if epoch < num_epochs / 2 else 0.01}
        line |= {"train/loss": 1.5 * task_loss, "train/task_loss": task_loss, "train/kd_loss": 0.5 * task_loss}
        line |= {"train/top1_error": 90.0 / (1 + epoch)}
        if epoch % evaluate_every == evaluate_every - 1:
            for split, offset in (("holdout", 2.0), ("test", 0.0)):
                line |= {f"{split}/top1_error": 20 + 70 / (1 + epoch) + offset}
                line |= {f"{split}/nll": 1 + task_loss + offset / 10, f"{split}/ece": 8.0 + offset}
        lines.append(line)
    return lines


def panels_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Title → the `g` element of the drawn panel."""
    drawing = draw_run(lines)
    assert drawing is not None
    root = ElementTree.fromstring(drawing.svg)
    return {group.find(f"{SVG}text[@class='title']").text: group for group in root.iter(f"{SVG}g")}


def points(group: Any, number: int) -> list[tuple[float, float]]:
    pairs = group.findall(f"{SVG}polyline")[number].get("points").split()
    return [tuple(map(float, pair.split(","))) for pair in pairs]


@pytest.mark.parametrize(
    ("title", "names", "metric"),
    [
        ("training loss", ["loss", "task_loss", "kd_loss"], None),
        ("top-1 error (%)", ["train", "test", "holdout"], "top1_error"),
        ("ECE (%)", ["test", "holdout"], "ece"),
        ("NLL (nats)", ["test", "holdout"], "nll"),
    ],
)
def test_every_curve_is_drawn_to_scale_in_its_own_colour(title: str, names: list[str], metric: str | None) -> None:
    lines = epoch_lines(6, evaluate_every=2)
    group = panels_of(lines)[title]
    spans = group.findall(f".//{SVG}tspan")
    assert [span.text for span in spans] == [f"● {name}" for name in names]
    colors = [line.get("class") for line in group.findall(f"{SVG}polyline")]
    assert colors == [span.get("class").replace("f", "l") for span in spans]
    assert len(set(colors)) == len(names)
    # Two values far apart give the scale; every other point must lie on it.
    drawn, values = [], []
    for number, name in enumerate(names):
        key = f"{name}/{metric}" if metric else f"train/{name}"
        own = [(line["epoch"], line[key]) for line in lines if key in line]
        assert len(points(group, number)) == len(own)
        drawn += points(group, number)
        values += own
    for axis in (0, 1):
        low, high = (f(range(len(values)), key=lambda index: values[index][axis]) for f in (min, max))
        scale = (drawn[high][axis] - drawn[low][axis]) / ((values[high][axis] - values[low][axis]) or 1)
        expected = [drawn[low][axis] + scale * (value[axis] - values[low][axis]) for value in values]
        assert [point[axis] for point in drawn] == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(
    ("losses", "logarithmic"), [([5.0, 0.7, 0.1], True), ([5.0, 2.0, 0.5], False), ([5.0, 1.0, 0.0], False)]
)
def test_losses_have_a_logarithmic_axis_only_if_positive_and_far_apart(losses: list[float], logarithmic: bool) -> None:
    group = panels_of([{"epoch": epoch, "train/loss": loss} for epoch, loss in enumerate(losses)])["training loss"]
    (_, first), (_, middle), (_, last) = points(group, 0)
    scaled = [math.log(loss) for loss in losses] if logarithmic else losses
    assert (middle - last) / (first - last) == pytest.approx(
        (scaled[1] - scaled[2]) / (scaled[0] - scaled[2]), abs=0.01
    )


def test_one_epoch_is_drawn_as_points_within_its_panel() -> None:
    for group in panels_of(epoch_lines(1)).values():
        lines = group.findall(f"{SVG}line")
        bottom = max(float(line.get("y1")) for line in lines)
        for circle in group.findall(f"{SVG}circle"):
            assert float(lines[0].get("x1")) < float(circle.get("cx")) < float(lines[0].get("x2"))
            assert bottom - PLOT_HEIGHT <= float(circle.get("cy")) <= bottom


@pytest.mark.parametrize("num_epochs", [1, 2, 7, 30, 301])
def test_axes_have_a_few_round_ticks(num_epochs: int) -> None:
    for group in panels_of(epoch_lines(num_epochs)).values():
        assert 1 <= len(group.findall(f"{SVG}line")) <= 7
        epochs = [int(text.text) for text in group.findall(f"{SVG}text[@text-anchor='middle']")]
        assert 1 <= len(epochs) <= 8
        assert all(1 <= epoch <= num_epochs for epoch in epochs)


def test_an_unknown_loss_term_gets_a_curve_and_a_missing_metric_no_panel() -> None:
    lines = [{"epoch": 0, "train/loss": 1.0, "train/center_loss": 2.0, "test/nll": math.inf}]
    assert {panel.title: [name for name, curve in panel.curves.items() if curve] for panel in run_panels(lines)} == {
        "training loss": ["loss", "center_loss"]
    }
    assert draw_run([]) is None


def test_the_same_numbers_give_the_same_text_and_names_are_escaped() -> None:
    lines = [{"epoch": 0, "train/<b>&": 1.0}]
    drawing = draw_run(lines)
    assert drawing == draw_run(lines)
    assert drawing is not None
    assert "● &lt;b&gt;&amp;" in drawing.svg
