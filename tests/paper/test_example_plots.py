"""The figures of single test images: t-SNE of their features, and the most confident mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from figure_runs import DIGITS, digits_data, digits_run, panel_of, runs_in, softmax, texts, write_run
from matplotlib.patches import Rectangle
from PIL import Image

from cskd_hf.data.splits import load_split
from cskd_hf.errors import UserError
from cskd_hf.evaluation.details import most_confident_mistakes
from cskd_hf.paper.example_plots import (
    MAX_MISTAKES,
    confident_mistakes,
    feature_maps,
    load_pictures,
    mistakes_on_a_page,
)
from cskd_hf.paper.finished_runs import read_runs
from cskd_hf.paper.plots import draw_figures
from cskd_hf.report.feature_map import choose_images, tsne


def test_t_sne_shows_the_first_images_of_evenly_spaced_classes() -> None:
    target = torch.arange(4000) % 40 * 2  # labels 0, 2, …, 78: a hundred images each
    chosen = choose_images(torch.cat([target, target]), 100)
    assert len(chosen) == 1000
    assert (np.diff(chosen) > 0).all()
    assert chosen.max() < 4000
    classes = np.unique(target.numpy()[chosen])
    assert (classes[0], classes[-1], len(classes)) == (0, 78, 10)
    assert set(np.diff(classes)) <= {8, 10}


def test_every_panel_shows_the_same_images_in_the_same_colours(tmp_path: Path) -> None:
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


def test_t_sne_preserves_clusters_and_is_deterministic() -> None:
    generator = np.random.RandomState(0)
    features = np.concatenate([generator.randn(30, 20), generator.randn(30, 20) + 40])
    points = tsne(features, 10.0)
    np.testing.assert_array_equal(points, tsne(features.copy(), 10.0))
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag(np.full(60, np.inf))
    assert (distance.argmin(axis=1) // 30 == np.arange(60) // 30).all()


@pytest.mark.parametrize(
    "settings", [{"num_images": 4}, {"num_images": 5}, {"num_images": 31}, {"features": torch.arange(120.0)[:, None]}]
)
def test_fewer_images_than_neighbours_and_one_dimensional_features_are_mapped(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    (run,) = runs_in(tmp_path, 1, **settings)
    drawing = feature_maps([run])
    assert drawing is not None
    points = np.concatenate([line.get_xydata() for line in drawing.figure.axes[0].lines])
    assert points.shape == (len(run.target), 2)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) > 0.8 * len(points)


@pytest.mark.parametrize("features", [torch.ones(120, 8), torch.zeros(120, 0)])
def test_equal_features_collapse_to_one_labelled_point(tmp_path: Path, features: torch.Tensor) -> None:
    drawing = feature_maps(runs_in(tmp_path, 1, features=features))
    assert drawing is not None
    points = np.concatenate([line.get_xydata() for line in drawing.figure.axes[0].lines])
    assert len(np.unique(points, axis=0)) == 1
    assert "all features are equal" in texts(drawing.figure)


def test_the_most_confident_mistakes_come_first(tmp_path: Path) -> None:
    (run,) = runs_in(tmp_path, 1)
    probability = softmax(run.logits)
    wrong = np.flatnonzero(probability.argmax(axis=1) != run.target.numpy())
    expected = wrong[np.argsort(-probability[wrong].max(axis=1), kind="stable")]
    assert most_confident_mistakes(run.logits, run.target, 5).tolist() == expected[:5].tolist()
    assert most_confident_mistakes(run.logits, run.target, 1000).tolist() == expected.tolist()


def test_mistakes_of_probability_one_are_ranked(tmp_path: Path) -> None:
    logits = torch.nn.functional.one_hot(torch.arange(120) * 7 % 10, 10).float()
    logits[[3, 50, 80]] = 0
    logits[3, 0], logits[50, 1], logits[80, 0] = 300, 500, 400  # the targets are 1, 0 and 0
    logits[80] = logits[80].roll(1)
    (run,) = runs_in(tmp_path, 1, logits=logits)
    assert most_confident_mistakes(run.logits, run.target, 3).tolist() == [50, 80, 3]


def test_bars_are_the_runs_probabilities_and_the_true_label_stands_out(tmp_path: Path) -> None:
    runs = read_runs([digits_run(tmp_path / str(seed), seed) for seed in range(2)])
    images = most_confident_mistakes(runs[0].logits, runs[0].target, 3).numpy()
    drawing = confident_mistakes(runs, images, load_pictures(runs[0], images))
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


def test_pictures_are_fetched_by_the_predictions_rows(tmp_path: Path) -> None:
    split = load_split(digits_data(), DIGITS)
    row = torch.arange(1199, 1199 - 120, -1)  # rows are not positions when images were skipped
    (run,) = read_runs([digits_run(tmp_path / "run", row=row, target=torch.from_numpy(split.labels[row.numpy()]))])
    pictures = load_pictures(run, np.array([0, 7]))
    from sklearn.datasets import load_digits

    scans = (load_digits().images * (255 / 16)).round().astype(np.uint8)
    for picture, position in zip(pictures, (1199, 1192), strict=True):
        (match,) = np.flatnonzero((scans == np.asarray(picture)[..., 0]).all(axis=(1, 2)))
        assert load_digits().target[match] == split.labels[position]


def test_a_missing_dataset_skips_only_the_mistakes_and_superclasses_add_their_matrix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{'even' if digit % 2 == 0 else 'odd'}: {digit}" for digit in range(10)]
    runs = [write_run(tmp_path / "run", class_names=names, data={"dataset": str(tmp_path / "gone")})]
    files = draw_figures(runs, tmp_path / "out")
    assert {path.stem for path in files} == {"reliability", "log_probability", "features", "superclasses"}
    assert sorted(files) == sorted((tmp_path / "out").iterdir())
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith("note: confident_mistakes: not drawn: ")
    assert str(tmp_path / "gone") in note


def test_a_changed_dataset_is_rejected(tmp_path: Path) -> None:
    (run,) = read_runs([write_run(tmp_path / "run")])  # whose targets are not the digits'
    with pytest.raises(UserError, match="other images"):
        load_pictures(run, np.array([0]))


def test_an_undecodable_picture_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for label in ("a", "b"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            Image.new("RGB", (900, 300)).save(tmp_path / "data" / split / label / "x.png")
    (tmp_path / "data" / "test" / "b" / "x.png").write_bytes(b"no picture")
    settings = {"class_names": ["a", "b"], "num_images": 2, "data": {"dataset": str(tmp_path / "data")}}
    (run,) = read_runs([write_run(tmp_path / "run", target=torch.tensor([0, 1]), **settings)])
    assert [picture.size for picture in load_pictures(run, np.array([0]))] == [(480, 160)]
    with pytest.raises(UserError, match=r"b/x\.png"):
        load_pictures(run, np.array([1]))


@pytest.mark.parametrize("num_runs", [1, 2, 3, 4, 6, 9, 40])
def test_as_many_mistakes_as_fit_a_page_are_drawn_and_at_least_one(num_runs: int) -> None:
    count = mistakes_on_a_page(num_runs)
    assert 1 <= count <= MAX_MISTAKES
    assert count == MAX_MISTAKES or num_runs > 3
