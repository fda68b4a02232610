from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from PIL import Image

from cskd_hf.evaluation.confidence import ece
from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.report.feature_map import MAX_CLASSES, MIN_IMAGES, feature_map
from cskd_hf.report.figures import BLUE, VERMILLION, reliability_diagram


def predictions(num_images: int = 400, num_classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Overconfident: the logits are three times too large for their noise."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(num_classes, (num_images,), generator=generator)
    signal = 2 * torch.nn.functional.one_hot(target, num_classes)
    return 3 * (signal + torch.randn(num_images, num_classes, generator=generator)), target


def shows(path: Path, color: str) -> bool:
    """Whether the colour occurs in the picture, up to antialiasing."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return bool((np.abs(pixels - rgb).max(axis=-1) <= 2).sum() >= 5)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that would have been saved, to inspect axes instead of pixels."""
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: figures.append(figure))
    return figures


@pytest.mark.parametrize(("temperature", "colors"), [(None, [VERMILLION]), (3.0, [VERMILLION, BLUE])])
def test_a_reliability_diagram_has_a_series_with_intervals_for_each_temperature(
    drawn: list[Figure], tmp_path: Path, temperature: float | None, colors: list[str]
) -> None:
    logits, target = predictions()
    reliability_diagram(logits, target, temperature, tmp_path / "reliability.png")
    diagram, _ = drawn[0].axes
    series = [container for container in diagram.containers if isinstance(container, ErrorbarContainer)]
    assert [container.lines[0].get_color() for container in series] == colors
    for container, divisor in zip(series, (1.0, 3.0), strict=False):
        probability = (logits.double() / divisor).softmax(1)
        confidence = probability.max(1).values.numpy()
        correct = (probability.argmax(1) == target).numpy()
        index = np.ceil(10 * confidence) - 1
        expected = []
        for number in range(10):
            inside = index == number
            if inside.any():
                expected.append((100 * confidence[inside].mean(), 100 * correct[inside].mean(), inside.sum()))
        x, accuracy, count = np.array(expected).T
        np.testing.assert_allclose(container.lines[0].get_xydata(), np.stack([x, accuracy], 1), atol=1e-9)
        # Wilson's interval: the roots p of (p̂ − p)² = z² p (1 − p) / n.
        z2, share = 1.959964**2, accuracy / 100
        roots = [np.sort(np.roots([1 + z2 / n, -2 * p - z2 / n, p * p])) for p, n in zip(share, count, strict=True)]
        ends = [np.sort(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
        np.testing.assert_allclose(ends, 100 * np.array(roots), atol=1e-5)


def test_the_legend_of_a_reliability_diagram_lies_below_its_panels(tmp_path: Path, drawn: list[Figure]) -> None:
    logits, target = predictions()
    reliability_diagram(logits, target, 3.0, tmp_path / "reliability.png")
    (legend,) = drawn[0].legends
    drawn[0].draw_without_rendering()
    lowest = min(axes.get_window_extent().y0 for axes in drawn[0].axes)
    assert legend.get_window_extent().y1 < lowest
    texts = " ".join(text.get_text() for text in legend.get_texts())
    assert f"ECE {ece(logits, target):.2f} %" in texts
    assert f"ECE {ece(logits / 3.0, target):.2f} %" in texts


def features_of(num_images: int, num_classes: int) -> Predictions:
    target = torch.arange(num_images) % num_classes
    features = torch.randn(num_images, 8, generator=torch.Generator().manual_seed(0)) + target[:, None]
    return Predictions(torch.zeros(num_images, num_classes), target, torch.arange(num_images), features, {})


def test_a_feature_map_shows_some_images_of_some_classes_by_name(
    drawn: list[Figure], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cskd_hf.report.feature_map.IMAGES_PER_CLASS", 6)
    names = tuple(f"_class $ {number}" for number in range(12))
    feature_map(features_of(12 * 9, 12), names, tmp_path / "features.png")
    (axes,), (legend,) = drawn[0].axes, drawn[0].legends
    assert [len(line.get_xdata()) for line in axes.lines] == [6] * MAX_CLASSES
    shown = [text.get_text() for text in legend.get_texts()]
    assert (shown[0], shown[-1], len(shown)) == (names[0], names[-1], MAX_CLASSES)


@pytest.mark.parametrize("features", [torch.ones(200, 8), torch.randn(MIN_IMAGES - 1, 8)])
def test_features_that_show_nothing_are_not_drawn_and_an_old_map_is_removed(
    tmp_path: Path, features: torch.Tensor
) -> None:
    path, num_images = tmp_path / "features.png", len(features)
    path.write_bytes(b"old")
    test = features_of(num_images, 2)._replace(features=features)
    feature_map(test, ("a", "b"), path)
    assert not path.exists()


def test_the_same_numbers_give_the_same_bytes_in_colour_with_alternative_text(tmp_path: Path) -> None:
    logits, target = predictions()
    for name in ("first", "second"):
        reliability_diagram(logits, target, 2.0, tmp_path / name / "reliability.png")
        feature_map(features_of(60, 3), ("a", "b", "c"), tmp_path / name / "features.png")
    for figure in ("reliability.png", "features.png"):
        assert (tmp_path / "first" / figure).read_bytes() == (tmp_path / "second" / figure).read_bytes()
        assert shows(tmp_path / "first" / figure, BLUE)
        with Image.open(tmp_path / "first" / figure) as image:
            assert image.info["Description"].endswith(".")


def test_drawing_does_not_change_matplotlibs_settings(tmp_path: Path) -> None:
    before = dict(matplotlib.rcParams)
    reliability_diagram(*predictions(), None, tmp_path / "reliability.png")
    assert dict(matplotlib.rcParams) == before
