"""The paper's figures against NumPy, and against what they are made of: run folders, which these tests write."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle, StepPatch
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import save_file

from cskd_hf.data.load import load_split
from cskd_hf.errors import UserError
from cskd_hf.recipe_sections import DataSection
from cskd_hf.results.finished_runs import FinishedRun, read_runs
from cskd_hf.results.paper_examples import (
    MAX_MISTAKES,
    chosen_images,
    confident_mistakes,
    feature_maps,
    mistakes_on_a_page,
    most_confident_mistakes,
    pictures_of,
    tsne,
)
from cskd_hf.results.paper_figures import draw_figures
from cskd_hf.results.paper_plots import log_probabilities, reliability_diagrams, superclass_matrices, superclasses_of
from cskd_hf.results.paper_style import PAGE_HEIGHT, TWO_COLUMNS_WIDTH, shortened, text_width

ROOT = Path(__file__).resolve().parents[2]
DIGITS = [str(digit) for digit in range(10)]
DATA = {"dataset": "digits", "train_split": "train", "test_split": "test", "holdout": "holdout"}
DATA |= {"image_column": "image", "label_column": "label"}
ODD_NAMES = [
    "$\\alpha^^",
    "_private_",
    "Łódź 鳥",
    "a very long name " * 9,
    "line\nbreak",
    "__",
    "100 % $",
    "",
    "{x}",
    "😀",
]


def write_run(
    folder: Path,
    method: Mapping[str, Any] | None = None,
    *,
    seed: int = 0,
    model_name: str = "resnet18",
    class_names: list[str] = DIGITS,
    temperature: float | None = 2.0,
    num_images: int = 120,
    data: Mapping[str, Any] = DATA,
    **tensors: torch.Tensor,
) -> Path:
    """A run folder with what the figures read: somewhat overconfident predictions, other ones for every seed."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(num_images) * 7 % len(class_names)
    noise = torch.randn(num_images, len(class_names), generator=generator)
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, len(class_names)) + noise)
    features = torch.randn(num_images, 8, generator=generator) + target[:, None]
    held = {"logits": logits, "target": target, "features": features, "row": torch.arange(num_images)} | tensors
    (folder / "model").mkdir(parents=True)
    save_file(held, folder / "predictions.safetensors")
    summary = {
        "seed": seed,
        "model": {"model_name": model_name},
        "method": {"name": "cskd", "temperature": 4.0} if method is None else method,
        "metrics": {"temperature": temperature},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "model" / "config.json").write_text(json.dumps({"label_names": class_names}))
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"data": dict(data)}))
    return folder


def runs_in(folder: Path, num_runs: int = 2, **keys: Any) -> list[FinishedRun]:
    return read_runs([write_run(folder / f"run-{seed}", seed=seed, **keys) for seed in range(num_runs)])


def panel_of(figure: Figure, label: str) -> Axes:
    (axes,) = (axes for axes in figure.axes if axes.get_title(loc="left").splitlines()[:1] == [label])
    return axes


def softmax(logits: torch.Tensor) -> np.ndarray:
    exponential = np.exp(logits.double().numpy() - logits.double().numpy().max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def texts(figure: Figure) -> str:
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    shown += [axes.get_title(loc=place) for axes in figure.axes for place in ("left", "center")]
    return "\n".join(shown + [text.get_text() for legend in figure.legends for text in legend.get_texts()])


# Reading runs


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ([{}], ["CS-KD"]),
        ([{}, {"method": {"name": "cross_entropy"}}], ["CS-KD", "cross entropy"]),
        ([{"seed": 3}, {"seed": 4}], ["CS-KD, seed 3", "CS-KD, seed 4"]),
        ([{}, {}], ["CS-KD, seed 0 (run-0)", "CS-KD, seed 0 (run-1)"]),
        ([{}, {"model_name": "densenet121"}], ["CS-KD, resnet18", "CS-KD, densenet121"]),
        (
            [{"method": {"name": "cross_entropy", "smoothing": value}} for value in (0.0, 0.1)] + [{}],
            ["cross entropy, smoothing 0", "cross entropy, smoothing 0.1", "CS-KD"],
        ),
        (
            [{"method": {"name": "distillation", "teacher": f"runs/{seed}"}, "seed": seed} for seed in (0, 1)],
            ["distillation, seed 0", "distillation, seed 1"],
        ),
    ],
)
def test_a_label_says_as_much_as_tells_the_runs_apart_and_no_more(
    tmp_path: Path, keys: list[dict[str, Any]], labels: list[str]
) -> None:
    folders = [write_run(tmp_path / f"run-{number}", **each) for number, each in enumerate(keys)]
    assert [run.label for run in read_runs(folders)] == labels


def test_folders_of_one_name_are_told_apart_by_where_they_are(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / parent / "run") for parent in ("a", "b")])
    assert [run.label.removeprefix("CS-KD, seed 0 (run) ") for run in runs] == [
        f"({tmp_path / parent / 'run'})" for parent in ("a", "b")
    ]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("summary.json"), "no finished run"),
        (shutil.rmtree, "no such folder"),
        (with_text("summary.json", '{"seed": 0'), r"summary\.json: cannot be read"),
        (with_text("summary.json", "[]"), r"summary\.json: cannot be read"),
        (with_text("summary.json", '{"seed": 0}'), r"summary\.json: has no 'method'"),
        (without("predictions.safetensors"), r"predictions\.safetensors: cannot be read"),
        (with_text("predictions.safetensors", "cut"), r"predictions\.safetensors: cannot be read"),
        (without("model/config.json"), r"config\.json: cannot be read"),
        (with_text("model/config.json", '{"label_names": ["a", "b"]}'), "10 logits, but .* names 2 classes"),
        (without("recipe.yaml"), r"recipe\.yaml"),
        (with_text("recipe.yaml", "data: {dataset: 3}"), r"recipe\.yaml: data: "),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad", seed=1)
    spoil(bad)
    with pytest.raises(UserError, match=message) as raised:
        draw_figures([good, bad], tmp_path / "out")
    assert str(bad) in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features": torch.full((120, 8), math.nan)}, "features are not finite"),
        ({"features": torch.zeros(119, 8)}, "one row for each image"),
        ({"row": torch.arange(119)}, "one row for each image"),
        ({"logits": torch.full((120, 10), math.nan)}, r"logits\[0\] is not finite"),
        ({"target": torch.full((120,), 10)}, r"target\[0\] is 10"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_runs([write_run(tmp_path / "run", **tensors)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": DATA | {"dataset": "cifar100"}}, "trained on digits and cifar100"),
        ({"data": DATA | {"test_split": "holdout"}}, "splits 'test' and 'holdout'"),
        ({"class_names": DIGITS[::-1]}, "other classes"),
        ({"class_names": DIGITS[:-1]}, "other classes"),
        ({"row": torch.arange(1, 121)}, "other test images"),
        ({"target": torch.zeros(120, dtype=torch.int64)}, "other test images"),
        ({"num_images": 119}, "other test images"),
    ],
)
def test_runs_on_other_data_are_refused_together(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1), write_run(tmp_path / "c", **keys)]
    with pytest.raises(UserError, match=message):
        read_runs(folders)


@pytest.mark.parametrize("places", [("./mit67", "/data/mit67"), ("cub200", "bentrevett/caltech-ucsd-birds-200-2011")])
def test_one_set_under_two_names_is_one_set(tmp_path: Path, places: tuple[str, str]) -> None:
    folders = [
        write_run(tmp_path / str(seed), seed=seed, data=DATA | {"dataset": place}) for seed, place in enumerate(places)
    ]
    assert len(read_runs(folders)) == 2


def test_no_run_and_the_same_run_twice_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no runs"):
        draw_figures([], tmp_path / "out")
    with pytest.raises(UserError, match="given twice"):
        draw_figures([run, tmp_path / "." / "run"], tmp_path / "out")


# The numbers drawn


def test_a_reliability_panel_shows_each_bins_confidence_accuracy_and_share(tmp_path: Path) -> None:
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
        assert "with T = 2.00" in panel.get_title(loc="left")


def test_a_run_without_a_temperature_has_no_second_line(tmp_path: Path) -> None:
    drawing = reliability_diagrams(runs_in(tmp_path, temperature=None))
    assert "T =" not in texts(drawing.figure)
    assert "logits divided by T" not in texts(drawing.figure)
    assert [len(panel.lines) for panel in drawing.figure.axes] == [2, 2]


def test_histograms_show_the_share_of_each_runs_own_mistakes(tmp_path: Path) -> None:
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


def test_impossible_labels_are_counted_in_the_first_bin_and_the_axis_says_so(tmp_path: Path) -> None:
    logits = torch.zeros(120, 10)
    logits[:, 1] = 1000.0  # right for the images of class 1; every other class has probability 0
    drawing = log_probabilities(runs_in(tmp_path, 1, logits=logits))
    assert drawing is not None
    predicted, true = drawing.figure.axes
    (steps,) = true.patches
    assert isinstance(steps, StepPatch)
    assert steps.get_data().values[0] == 100
    assert "−20 and below" in true.get_xlabel()
    assert "below" not in predicted.get_xlabel()


def test_runs_without_a_mistake_have_no_histogram(tmp_path: Path) -> None:
    perfect = {"logits": 5.0 * torch.nn.functional.one_hot(torch.arange(120) * 7 % 10, 10)}
    assert log_probabilities(runs_in(tmp_path / "all", **perfect)) is None
    mixed = read_runs([write_run(tmp_path / "good", **perfect), write_run(tmp_path / "bad", seed=1)])
    drawing = log_probabilities(mixed)
    assert drawing is not None
    assert "(n = 0)" in texts(drawing.figure)


def test_a_superclass_matrix_has_each_cell_in_percent_of_its_row(tmp_path: Path) -> None:
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
        ["a: x", "b: x", "c: x"],  # nothing is grouped
        ["a:b", "a:c", "d:e"],
    ],
)
def test_names_that_tell_no_superclasses_give_no_matrix(tmp_path: Path, names: list[str]) -> None:
    assert superclasses_of(names) == []
    assert superclass_matrices(runs_in(tmp_path, 1, class_names=names)) is None


@pytest.mark.parametrize("size", [2, 6, 12, 24])
def test_any_number_of_superclasses_is_drawn(tmp_path: Path, size: int) -> None:
    names = [f"superclass {label % size}: {label}" for label in range(2 * size)]
    drawing = superclass_matrices(runs_in(tmp_path, 2, class_names=names))
    assert drawing is not None
    assert len(drawing.figure.axes[0].images[0].get_array()) == size
    assert drawing.figure.get_figwidth() <= TWO_COLUMNS_WIDTH + 1e-6
    drawing.files()


# Features


def test_the_images_of_a_map_are_the_first_of_evenly_spaced_classes() -> None:
    target = torch.arange(4000) % 40 * 2  # labels 0, 2, …, 78: a hundred images each
    chosen = chosen_images(torch.cat([target, target]))
    assert len(chosen) == 1000
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() < 4000
    classes = np.unique(target.numpy()[chosen])
    assert (classes[0], classes[-1], len(classes)) == (0, 78, 10)
    assert set(np.diff(classes)) <= {8, 10}


def test_every_run_shows_the_same_images_of_the_same_classes_in_the_same_colours(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    drawing = feature_maps(runs)
    assert drawing is not None
    looks = []
    for run in runs:
        lines = panel_of(drawing.figure, run.label).lines
        assert [len(line.get_xdata()) for line in lines] == [12] * 10
        looks.append([(line.get_color(), line.get_marker()) for line in lines])
        points = tsne(run.features.double().numpy(), 30.0)
        for label, line in enumerate(lines):
            np.testing.assert_array_equal(line.get_xydata(), points[run.target.numpy() == label])
    assert looks[0] == looks[1]
    assert len(set(looks[0])) == 10
    assert "120 test images of all 10 classes" in drawing.description


def test_tsne_brings_together_what_is_near_the_same_way_every_time() -> None:
    generator = np.random.RandomState(0)
    features = np.concatenate([generator.randn(30, 20), generator.randn(30, 20) + 40])
    points = tsne(features, 10.0)
    np.testing.assert_array_equal(points, tsne(features.copy(), 10.0))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert (distance.argmin(axis=1) // 30 == np.arange(60) // 30).all()


@pytest.mark.parametrize("num_images", [4, 5, 31])
def test_fewer_images_than_neighbours_are_still_mapped(tmp_path: Path, num_images: int) -> None:
    drawing = feature_maps(runs_in(tmp_path, 1, num_images=num_images))
    assert drawing is not None
    points = np.concatenate([line.get_xydata() for line in drawing.figure.axes[0].lines])
    assert points.shape == (num_images, 2)
    assert np.isfinite(points).all()


@pytest.mark.parametrize("features", [torch.ones(120, 8), torch.zeros(120, 0)])
def test_equal_features_lie_on_one_point_and_the_panel_says_so(tmp_path: Path, features: torch.Tensor) -> None:
    drawing = feature_maps(runs_in(tmp_path, 1, features=features))
    assert drawing is not None
    points = np.concatenate([line.get_xydata() for line in drawing.figure.axes[0].lines])
    assert len(np.unique(points, axis=0)) == 1
    assert "all features are equal" in texts(drawing.figure)
    drawing.files()


def test_features_of_one_dimension_are_mapped(tmp_path: Path) -> None:
    drawing = feature_maps(runs_in(tmp_path, 1, features=torch.arange(120.0)[:, None]))
    assert drawing is not None
    points = np.concatenate([line.get_xydata() for line in drawing.figure.axes[0].lines])
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) > 100


# Mistakes


def digits_run(folder: Path, seed: int = 0, **keys: Any) -> Path:
    """Predictions on the first images of the digits' test split."""
    target = torch.from_numpy(load_split(DataSection(**DATA), DIGITS).labels[:120].copy())
    noise = torch.randn(120, 10, generator=torch.Generator().manual_seed(seed))
    logits = 3 * (1.5 * torch.nn.functional.one_hot(target, 10) + noise)
    return write_run(folder, seed=seed, **{"target": target, "logits": logits} | keys)


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path, 1)
    probability = softmax(run.logits)
    wrong = np.flatnonzero(probability.argmax(axis=1) != run.target.numpy())
    expected = wrong[np.argsort(-probability[wrong].max(axis=1), kind="stable")]
    assert most_confident_mistakes(run, 5).tolist() == expected[:5].tolist()
    assert most_confident_mistakes(run, 1000).tolist() == expected.tolist()


def test_mistakes_of_probability_one_are_told_apart(tmp_path: Path) -> None:
    logits = torch.nn.functional.one_hot(torch.arange(120) * 7 % 10, 10).float()
    logits[[3, 50, 80]] = 0
    logits[3, 0], logits[50, 1], logits[80, 0] = 300, 500, 400  # the targets are 1, 0 and 0
    logits[80] = logits[80].roll(1)
    (run,) = runs_in(tmp_path, 1, logits=logits)
    assert most_confident_mistakes(run, 3).tolist() == [50, 80, 3]


def test_every_runs_bars_are_its_own_probabilities_and_the_true_label_stands_out(tmp_path: Path) -> None:
    runs = read_runs([digits_run(tmp_path / str(seed), seed) for seed in range(2)])
    images = most_confident_mistakes(runs[0], 3)
    drawing = confident_mistakes(runs, images, pictures_of(runs[0], images))
    panels = [panel for panel in drawing.figure.axes if panel.patches]
    assert len(panels) == 6
    true_labels = 0
    for number, panel in enumerate(panels):
        run, image = runs[number % 2], images[number // 2]
        order = np.argsort(-softmax(run.logits)[image], kind="stable")[:5]
        percent = 100 * softmax(run.logits)[image][order]
        bars = [bar for bar in panel.patches if isinstance(bar, Rectangle)]
        np.testing.assert_allclose([bar.get_width() for bar in bars], percent)
        names, values = panel.texts[::2], panel.texts[1::2]
        assert [text.get_text() for text in names] == [str(label) for label in order]
        assert [text.get_text() for text in values] == [f"{value:.1f}" for value in percent]
        for label, text, bar in zip(order, names, bars, strict=True):
            is_true = label == int(run.target[image])
            true_labels += is_true
            assert (text.get_fontweight() == "bold") == is_true
            assert (bar.get_facecolor() != bars[0].get_facecolor()) == (is_true != (order[0] == run.target[image]))
    assert true_labels > 0


def test_pictures_are_those_of_the_predictions_rows(tmp_path: Path) -> None:
    split = load_split(DataSection(**DATA), DIGITS)
    row = torch.arange(1199, 1199 - 120, -1)  # some images were unreadable: rows are no positions
    (run,) = read_runs([digits_run(tmp_path / "run", row=row, target=torch.from_numpy(split.labels[row.numpy()]))])
    pictures = pictures_of(run, np.array([0, 7]))
    from sklearn.datasets import load_digits

    scans = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    for picture, position in zip(pictures, (1199, 1192), strict=True):
        (match,) = np.flatnonzero((scans == np.asarray(picture)[..., 0]).all(axis=(1, 2)))
        assert load_digits().target[match] == split.labels[position]


def test_data_that_is_gone_leaves_out_the_mistakes_alone_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [write_run(tmp_path / "run", data=DATA | {"dataset": str(tmp_path / "gone")})]
    files = draw_figures(runs, tmp_path / "out")
    assert {path.stem for path in files} == {"reliability", "log_probability", "features"}
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    said = capsys.readouterr().err
    assert said.startswith("note: confident_mistakes is left out: ")
    assert str(tmp_path / "gone") in said
    assert said.count("\n") == 1


def test_data_that_has_changed_gives_no_wrong_pictures(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run")])  # its targets are not the digits'
    with pytest.raises(UserError, match="other images"):
        pictures_of(run, np.array([0]))


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            Image.new("RGB", (900, 300)).save(tmp_path / "data" / split / label / "x.png")
    (tmp_path / "data" / "test" / "b" / "x.png").write_bytes(b"no picture")
    keys = {"class_names": ["a", "b"], "num_images": 2, "data": DATA | {"dataset": str(tmp_path / "data")}}
    (run,) = read_runs([write_run(tmp_path / "run", target=torch.tensor([0, 1]), **keys)])
    assert [picture.size for picture in pictures_of(run, np.array([0]))] == [(480, 160)]
    with pytest.raises(UserError, match=r"b/x\.png"):
        pictures_of(run, np.array([1]))


@pytest.mark.parametrize("num_runs", [1, 2, 3, 4, 6, 9, 40])
def test_mistakes_fit_a_page_as_long_as_one_does(num_runs: int) -> None:
    count = mistakes_on_a_page(num_runs)
    assert 1 <= count <= MAX_MISTAKES
    assert count == MAX_MISTAKES or num_runs > 3


# The files


@pytest.mark.parametrize("num_runs", [1, 3])
def test_every_figure_is_written_for_print_and_for_the_screen(
    tmp_path: Path, num_runs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = draw_figures([digits_run(tmp_path / str(seed), seed) for seed in range(num_runs)], tmp_path / "a" / "out")
    assert [path.name for path in files] == [
        f"{name}.{extension}"
        for name in ("reliability", "log_probability", "features", "confident_mistakes")
        for extension in ("pdf", "png")
    ]
    assert sorted(files) == sorted((tmp_path / "a" / "out").iterdir())
    assert capsys.readouterr().err == ""
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".pdf":
            assert content.startswith(b"%PDF")
            assert b"/Subject" in content
            assert b"/FontFile2" in content  # TrueType
            assert b"/Type3" not in content
        else:
            with Image.open(path) as image:
                assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
                assert image.width <= 300 * TWO_COLUMNS_WIDTH + 1
                assert image.height <= 300 * (PAGE_HEIGHT + 1)
                assert "CS-KD" in image.info["Description"]


def test_classes_with_superclasses_get_their_matrix(tmp_path: Path) -> None:
    names = [f"{'even' if digit % 2 == 0 else 'odd'}: {digit}" for digit in range(10)]
    files = draw_figures([write_run(tmp_path / "run", class_names=names)], tmp_path / "out")
    assert [path.name for path in files][-2:] == ["superclasses.pdf", "superclasses.png"]


def test_the_same_runs_give_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    runs = [digits_run(tmp_path / str(seed), seed, features=torch.randn(120, 8)) for seed in range(2)]
    code = (
        "import sys; from pathlib import Path; from cskd_hf.results.paper_figures import draw_figures; "
        "*runs, output = map(Path, sys.argv[1:]); draw_figures(runs, output)"
    )
    draw_figures(runs, tmp_path / "here")
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "TZ": "UTC+9", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *runs, tmp_path / "there"], env=environment, check=True)
    written = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert written == {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    assert len(written) == 8


def test_an_output_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    run = write_run(tmp_path / "run")
    for output in (tmp_path / "out", tmp_path / "out" / "below" / "it"):
        with pytest.raises(UserError, match="out: a file; name a folder"):
            draw_figures([run], output)
    assert (tmp_path / "out").read_text() == "mine"


def test_figures_of_before_are_replaced(tmp_path: Path) -> None:
    first = draw_figures([write_run(tmp_path / "a", num_images=20)], tmp_path / "out")
    before = {path: path.read_bytes() for path in first}
    second = draw_figures([write_run(tmp_path / "b", seed=1, num_images=20)], tmp_path / "out")
    assert second == first
    assert all(path.read_bytes() != before[path] for path in first)


# Letters


@pytest.mark.parametrize("num_runs", [1, 3])
def test_strange_names_are_drawn_as_they_are_without_a_warning(tmp_path: Path, num_runs: int) -> None:
    names = [f"{'$x_1^^ _' if label % 2 else '_a'}: {name}" for label, name in enumerate(ODD_NAMES)]
    folders = [digits_run(tmp_path / f"$r_{seed}^^", seed, class_names=names) for seed in range(num_runs)]
    runs = read_runs(folders)
    images = most_confident_mistakes(runs[0], 2)
    pictures = [Image.new("RGB", size) for size in ((30, 3), (3, 30))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawings = [reliability_diagrams(runs), log_probabilities(runs), feature_maps(runs)]
        drawings += [superclass_matrices(runs), confident_mistakes(runs, images, pictures)]
        for drawing in drawings:
            assert drawing is not None
            drawing.files()
    features = drawings[2]
    assert features is not None
    shown = [text.get_text() for text in features.figure.legends[0].get_texts()]
    assert shown[0] == "_a: $\\alpha^^"
    assert shown[1].startswith("$x_1^^ _")
    assert shown[2] == "_a: Łódź \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("num_runs", [1, 2, 3, 4, 6])
def test_nothing_is_cut_by_the_edge_of_its_figure_and_no_text_covers_another(tmp_path: Path, num_runs: int) -> None:
    names = [f"{'superclass' if label % 2 else 'another_superclass'}: {'long_class_name' * 3} {label}" for label in range(10)]  # fmt: skip  # noqa: E501
    method = {"name": "cross_entropy", "smoothing": 0.1}
    keys: dict[str, Any] = {"class_names": names, "method": method, "features": torch.zeros(120, 8)}
    folders = [digits_run(tmp_path / f"a-long-name-{number}", **keys) for number in range(num_runs)]
    runs = read_runs(folders)
    images = most_confident_mistakes(runs[0], mistakes_on_a_page(num_runs))
    pictures = [Image.new("RGB", (30, 20))] * len(images)
    for drawing in (
        reliability_diagrams(runs),
        log_probabilities(runs),
        feature_maps(runs),
        superclass_matrices(runs),
        confident_mistakes(runs, images, pictures),
    ):
        assert drawing is not None
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()
        box, (width, height) = drawing.figure.get_tightbbox(canvas.get_renderer()), drawing.figure.get_size_inches()
        assert min(box.x0, box.y0) >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        texts_above = [text for axes in drawing.figure.axes for text in axes.get_children() if isinstance(text, Text)]
        extents = [text.get_window_extent() for text in texts_above if text.get_text() and text.get_visible()]
        for number, extent in enumerate(extents):
            assert not any(extent.overlaps(other) for other in extents[:number])


@pytest.mark.parametrize("name", [*ODD_NAMES, "cub200: 001.Black_footed_Albatross"])
@pytest.mark.parametrize("width", [20.0, 60.0, 400.0])
def test_a_shortened_name_is_one_line_no_wider_than_asked(name: str, width: float) -> None:
    shown = shortened(name, width, 7.0)
    assert text_width(shown, 7.0) <= width
    assert "\n" not in shown
    if "…" not in shown:
        assert len(shown) == len(" ".join(name.split()))


def test_a_shortened_name_keeps_its_end() -> None:
    assert shortened("cub200: 001.Black_footed_Albatross", 90.0, 7.0).endswith("ed_Albatross")
