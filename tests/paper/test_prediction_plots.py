"""Reliability diagrams, histograms and superclass matrices: the drawn numbers against NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from figure_runs import panel_of, runs_in, softmax, texts, write_run
from matplotlib.patches import Rectangle, StepPatch

from cskd_hf.paper.finished_runs import read_runs
from cskd_hf.paper.page_style import TWO_COLUMNS_WIDTH
from cskd_hf.paper.prediction_plots import log_probabilities, reliability_diagrams, superclass_matrices, superclasses_of


def test_a_reliability_panel_shows_confidence_accuracy_and_share_per_bin(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    drawing = reliability_diagrams(runs)
    for run in runs:
        panel = panel_of(drawing.figure, run.label)
        lines = {line.get_marker(): line for line in panel.lines if line.get_linestyle() == "-"}
        assert run.temperature is not None
        for marker, logits in (("o", run.logits), ("None", run.logits / run.temperature)):
            probability = softmax(logits)
            confidence, right = probability.max(axis=1), probability.argmax(axis=1) == run.target.numpy()
            which = np.ceil(confidence * 10).astype(int) - 1
            points = [
                (confidence[which == b].mean(), right[which == b].mean()) for b in range(10) if (which == b).any()
            ]
            np.testing.assert_allclose(lines[marker].get_xydata(), 100 * np.array(points), atol=1e-4)
            each = np.ceil(confidence * 20).astype(int) - 1
            gaps = [abs((right[each == b] - confidence[each == b]).sum()) for b in range(20)]
            assert f"ECE {100 * sum(gaps) / len(right):.2f} %" in panel.get_title(loc="left")
            if marker == "o":
                heights = [bar.get_height() for bar in panel.patches if isinstance(bar, Rectangle)]
                np.testing.assert_allclose(heights, 100 * np.bincount(which, minlength=10) / len(right))
        assert "with T = 2" in panel.get_title(loc="left")


def test_a_run_without_a_temperature_has_no_second_line(tmp_path: Path) -> None:
    drawing = reliability_diagrams(runs_in(tmp_path, temperature=None))
    assert "T =" not in texts(drawing.figure)
    assert "logits divided by T" not in texts(drawing.figure)
    assert [len(panel.lines) for panel in drawing.figure.axes] == [2, 2]


def test_histograms_are_shares_of_each_runs_mistakes(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, 3)
    drawing = log_probabilities(runs)
    assert drawing is not None
    for column, panel in enumerate(drawing.figure.axes):
        steps = [patch for patch in panel.patches if isinstance(patch, StepPatch)]
        assert len({patch.get_edgecolor() for patch in steps}) == len(runs)
        for run, patch in zip(runs, steps, strict=True):
            probability, target = softmax(run.logits), run.target.numpy()
            wrong = probability.argmax(axis=1) != target
            label = (probability.argmax(axis=1), target)[column]
            value = np.log(probability[np.arange(len(target)), label])[wrong]
            heights, edges, _ = patch.get_data()
            assert edges[0] <= value.min()
            assert edges[-1] == 0
            np.testing.assert_allclose(heights, 100 * np.histogram(value, edges)[0] / wrong.sum())
            assert sum(heights) == pytest.approx(100)
            assert f"{run.label} (n = {wrong.sum()})" in texts(drawing.figure)


def test_impossible_labels_fall_into_the_first_bin_which_the_axis_names(tmp_path: Path) -> None:
    logits = torch.zeros(120, 10)
    logits[:, 1] = 1000.0  # right for class 1; every other class has probability 0
    drawing = log_probabilities(runs_in(tmp_path, 1, logits=logits))
    assert drawing is not None
    predicted, true = drawing.figure.axes
    (steps,) = true.patches
    assert isinstance(steps, StepPatch)
    assert steps.get_data().values[0] == 100
    assert "−20 and below" in true.get_xlabel()
    assert "below" not in predicted.get_xlabel()


def test_histograms_need_a_mistake(tmp_path: Path) -> None:
    perfect = {"logits": 5.0 * torch.nn.functional.one_hot(torch.arange(120) * 7 % 10, 10)}
    assert log_probabilities(runs_in(tmp_path / "all", **perfect)) is None
    mixed = read_runs([write_run(tmp_path / "good", **perfect), write_run(tmp_path / "bad", seed=1)])
    drawing = log_probabilities(mixed)
    assert drawing is not None
    assert "(n = 0)" in texts(drawing.figure)


def test_a_superclass_matrix_is_in_percent_of_each_row(tmp_path: Path) -> None:
    names = ["bird: a", "bird: b", "dog: a", "room: a: b", "room: c", "empty: a"]
    target = torch.arange(120) % 5
    runs = runs_in(tmp_path, 2, class_names=names, target=target)
    drawing = superclass_matrices(runs)
    assert drawing is not None
    of_class = np.array([0, 0, 1, 2, 2, 3])
    for run in runs:
        panel = panel_of(drawing.figure, run.label)
        truth, predicted = of_class[target.numpy()], of_class[softmax(run.logits).argmax(axis=1)]
        shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in panel.texts}
        for row, column in np.ndindex(4, 4):
            share = "–" if row == 3 else f"{100 * (predicted[truth == row] == column).mean():.1f}"
            assert shown[row, column] == share
        error = 100 * (softmax(run.logits).argmax(axis=1) != target.numpy()).mean()
        assert f"top-1 error {error:.2f} %" in panel.get_title(loc="left")
        accuracy = f"{100 * (truth == predicted).mean():.2f} %"
        assert f"superclass acc. {accuracy}" in panel.get_title(loc="left")
        assert f"superclass accuracy {accuracy}" in drawing.description
    first = panel_of(drawing.figure, runs[0].label)
    assert [label.get_text() for label in first.get_yticklabels()] == ["bird", "dog", "room", "empty"]


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c"],
        ["bird: a", "bird: b", "bird: c"],  # one superclass
        ["bird: a", "dog: a", "c"],  # one class has none
        ["a: x", "b: x", "c: x"],  # no two share one
        ["a:b", "a:c", "d:e"],
    ],
)
def test_names_without_superclasses_give_no_matrix(tmp_path: Path, names: list[str]) -> None:
    assert superclasses_of(names) == []
    assert superclass_matrices(runs_in(tmp_path, 1, class_names=names)) is None


@pytest.mark.parametrize("size", [2, 6, 12, 24])
def test_any_number_of_superclasses_fits_the_page(tmp_path: Path, size: int) -> None:
    names = [f"superclass {label % size}: {label}" for label in range(2 * size)]
    drawing = superclass_matrices(runs_in(tmp_path, 2, class_names=names))
    assert drawing is not None
    assert len(drawing.figure.axes[0].images[0].get_array()) == size
    assert drawing.figure.get_figwidth() <= TWO_COLUMNS_WIDTH + 1e-6
