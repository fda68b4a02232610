from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cskd_hf.evaluation.metrics import ece
from cskd_hf.report.figures import BLUE, PALETTE, VERMILLION, learning_curves, reliability_diagram


def epoch_lines(num_epochs: int, evaluate_every: int = 1) -> list[dict[str, float]]:
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


def predictions(num_images: int = 400, num_classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident: the logits are three times too large for their noise."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    signal = 2 * torch.nn.functional.one_hot(target, num_classes)
    return 3 * (signal + torch.randn(num_images, num_classes, generator=generator)), target


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def shows(path: Path, color: str) -> bool:
    """Whether the colour occurs in the picture, up to antialiasing."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return bool((np.abs(pixels(path) - rgb).max(axis=-1) <= 2).sum() >= 5)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved, to inspect axes instead of pixels."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


def panel(figure: Figure, title: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left") == title)
    return axes


def test_learning_curves_are_drawn_in_colour(tmp_path: Path) -> None:
    learning_curves(epoch_lines(6), tmp_path / "figures" / "curves.png")
    assert shows(tmp_path / "figures" / "curves.png", BLUE)
    assert shows(tmp_path / "figures" / "curves.png", VERMILLION)


@pytest.mark.parametrize(
    ("title", "names", "metric"),
    [
        ("training loss", {"loss", "task_loss", "kd_loss"}, None),
        ("top-1 error (%)", {"train", "test", "holdout"}, "top1_error"),
        ("ECE (%)", {"test", "holdout"}, "ece"),
        ("NLL (nats)", {"test", "holdout"}, "nll"),
    ],
)
def test_every_curve_has_its_numbers_and_its_own_colour(
    drawn: list[Figure], tmp_path: Path, title: str, names: set[str], metric: str | None
) -> None:
    lines = epoch_lines(9, evaluate_every=3)
    learning_curves(lines, tmp_path / "curves.png")
    curves = {str(curve.get_label()): curve for curve in panel(drawn[0], title).lines}
    assert set(curves) == names
    assert len({curve.get_color() for curve in curves.values()}) == len(names)
    for name, curve in curves.items():
        key = f"{name}/{metric}" if metric else f"train/{name}"
        assert list(curve.get_xdata()) == [line["epoch"] + 1 for line in lines if key in line]
        assert list(curve.get_ydata()) == [line[key] for line in lines if key in line]


def test_one_epoch_is_drawn_as_points_inside_the_axes(drawn: list[Figure], tmp_path: Path) -> None:
    learning_curves(epoch_lines(1), tmp_path / "one.png")
    assert len(drawn[0].axes) == 5
    for axes in drawn[0].axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        for curve in axes.lines:
            (x,), (y,) = curve.get_xdata(), curve.get_ydata()
            assert curve.get_marker() == "o"
            assert left < x < right
            assert bottom < y < bottom + 0.98 * (top - bottom)  # a point on the frame would be cut


@pytest.mark.parametrize(
    ("losses", "scale"), [([5.0, 0.1], "log"), ([5.0, 0.5], "linear"), ([5.0, 0.0], "linear"), ([5.0, -1.0], "linear")]
)
def test_losses_have_a_logarithmic_axis_only_if_positive_and_far_apart(
    drawn: list[Figure], tmp_path: Path, losses: list[float], scale: str
) -> None:
    learning_curves([{"epoch": epoch, "train/loss": loss} for epoch, loss in enumerate(losses)], tmp_path / "loss.png")
    assert panel(drawn[0], "training loss").get_yscale() == scale


@pytest.mark.parametrize("evaluate_every", [4, 100])
def test_epochs_without_evaluation_are_skipped_in_the_curves(tmp_path: Path, evaluate_every: int) -> None:
    learning_curves(epoch_lines(8, evaluate_every), tmp_path / "sparse.png")
    learning_curves(epoch_lines(8), tmp_path / "full.png")
    assert pixels(tmp_path / "sparse.png").shape == pixels(tmp_path / "full.png").shape
    assert not np.array_equal(pixels(tmp_path / "sparse.png"), pixels(tmp_path / "full.png"))
    assert shows(tmp_path / "sparse.png", BLUE)  # task_loss


def test_an_unknown_loss_term_gets_a_curve(tmp_path: Path) -> None:
    lines = epoch_lines(4)
    learning_curves([line | {"train/center_loss": 2.0} for line in lines], tmp_path / "more.png")
    learning_curves(lines, tmp_path / "usual.png")
    assert shows(tmp_path / "more.png", PALETTE[3])
    assert not shows(tmp_path / "usual.png", PALETTE[3])


def test_a_temperature_adds_a_second_panel(tmp_path: Path) -> None:
    logits, target = predictions()
    reliability_diagram(logits, target, None, tmp_path / "one.png")
    reliability_diagram(logits, target, 3.0, tmp_path / "two.png")
    (height_one, width_one, _), (height_two, width_two, _) = (
        pixels(tmp_path / name).shape for name in ("one.png", "two.png")
    )
    assert height_one == height_two
    assert width_two == 2 * width_one


def test_the_second_panel_shows_the_scaled_logits(tmp_path: Path) -> None:
    logits, target = predictions()
    reliability_diagram(logits, target, 3.0, tmp_path / "scaled.png")
    with Image.open(tmp_path / "scaled.png") as image:
        text = image.info["Description"]
    assert f"ECE {ece(logits, target):.2f} % as trained" in text
    assert f"ECE {ece(logits / 3.0, target):.2f} % temperature 3.000" in text


def test_a_gap_is_drawn_only_if_confidence_and_accuracy_differ(tmp_path: Path) -> None:
    # Two classes, logits 0 and log 3: confidence 0.75. Three of four correct is calibrated, one of four is not.
    logits = torch.tensor([[0.0, math.log(3.0)]]).repeat(4, 1)
    reliability_diagram(logits, torch.tensor([1, 1, 1, 0]), None, tmp_path / "calibrated.png")
    reliability_diagram(logits, torch.tensor([1, 0, 0, 0]), None, tmp_path / "overconfident.png")
    in_plot = {}
    for name in ("calibrated", "overconfident"):
        tint = np.abs(pixels(tmp_path / f"{name}.png") - np.array([0xFB, 0xE3, 0xD4])).max(axis=-1) <= 2
        in_plot[name] = int(tint[:, tint.shape[1] // 2 :].sum())  # the legend, which has the tint too, is on the left
    assert in_plot["calibrated"] == 0
    assert in_plot["overconfident"] > 100


def test_a_title_is_never_parsed_as_a_formula(tmp_path: Path) -> None:
    reliability_diagram(*predictions(), None, tmp_path / "title.png", r"$\no^^formula$")
    reliability_diagram(*predictions(), None, tmp_path / "untitled.png")
    assert not np.array_equal(pixels(tmp_path / "title.png"), pixels(tmp_path / "untitled.png"))


def test_the_same_numbers_give_the_same_bytes(tmp_path: Path) -> None:
    logits, target = predictions()
    for name in ("first", "second"):
        learning_curves(epoch_lines(5), tmp_path / name / "curves.png")
        reliability_diagram(logits, target, 2.0, tmp_path / name / "reliability.png", "a run")
    for figure in ("curves.png", "reliability.png"):
        assert (tmp_path / "first" / figure).read_bytes() == (tmp_path / "second" / figure).read_bytes()


def test_drawing_does_not_change_matplotlibs_settings(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    learning_curves(epoch_lines(2), tmp_path / "curves.png")
    assert dict(matplotlib.rcParams) == before
