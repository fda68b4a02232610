"""The paper's figures of single images: t-SNE of their features, and the most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from cskd_hf.data.decode import Conversion, UnreadableImageError, decode
from cskd_hf.data.splits import load_split
from cskd_hf.errors import UserError
from cskd_hf.paper.finished_runs import FinishedRun
from cskd_hf.paper.page_style import (
    PAGE_HEIGHT,
    PAPER_STYLE,
    POINTS,
    SMALL,
    TWO_COLUMNS_WIDTH,
    Drawing,
    grid_shape,
    legend,
    panels,
    set_title,
    shortened,
    text_width,
)
from cskd_hf.report.feature_map import PERPLEXITY, POINT_STYLES, choose_images, tsne
from cskd_hf.report.figures import BLACK, BLUE, VERMILLION

IMAGES_PER_CLASS = 100
MIN_IMAGES = 4  # t-SNE needs a few neighbours
POINT_SIZE: dict[str, Any] = {"markersize": 2.2, "markeredgewidth": 0, "linestyle": "none"}

MAX_MISTAKES = 4
TOP_K = 5
PICTURE_WIDTH, MAX_BAR_WIDTH, BAR_HEIGHT = 1.15, 2.15, 0.14  # inches
PICTURE_PIXELS = 480  # of the longer side: more than 300 dpi


def feature_maps(runs: Sequence[FinishedRun]) -> Drawing | None:
    """t-SNE of penultimate features, one panel per run, of the images of `choose_images`; None for too few of them."""
    images = choose_images(runs[0].target, IMAGES_PER_CLASS)
    if len(images) < MIN_IMAGES:
        return None
    target = runs[0].target[images].numpy()
    classes = np.unique(target)
    num_classes = len(runs[0].class_names)
    share = f"{len(classes)} of the" if len(classes) < num_classes else "all"
    perplexity = min(PERPLEXITY, (len(images) - 1) / 3)
    subject = f"{len(images):,} test images of {share} {num_classes} classes, perplexity {perplexity:.3g}"
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        figure, axes, width = panels(len(runs), 0.15)
        for run, panel in zip(runs, axes, strict=True):
            features = run.features[images].double().numpy()
            equal = np.ptp(features, axis=0).max(initial=0) == 0
            points = np.zeros((len(features), 2)) if equal else tsne(features, perplexity)
            for number, label in enumerate(classes):
                panel.plot(*points[target == label].T, **POINT_STYLES[number], **POINT_SIZE)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
            panel.margins(0.04)
            set_title(panel, width - 10, run.label, *(["all features are equal"] if equal else []))
        page = figure.get_figwidth() * POINTS
        room = page / max(2, round(page / 165)) - 5 * SMALL  # for two or three names per row
        names = [shortened(runs[0].class_names[label], room, SMALL) for label in classes]
        handles = [Line2D([], [], **style, **POINT_SIZE) for style in POINT_STYLES[: len(classes)]]
        legend(figure, handles, names, f"t-SNE of {subject}", markerscale=2)
    labels = "; ".join(run.label for run in runs)
    return Drawing(figure, f"t-SNE of penultimate features, {subject}: {labels}.")


def load_pictures(run: FinishedRun, images: NDArray[np.int64]) -> list[Image.Image]:
    """The images behind some rows of a run's predictions, downsized to print resolution.

    Raises:
        UserError: the dataset is missing or has changed since the run, or an image cannot be decoded.
    """
    split = load_split(run.recipe.data, run.class_names)
    rows = run.row.numpy()
    if rows.max() >= len(split) or not np.array_equal(split.labels[rows], run.target.numpy()):
        dataset = run.recipe.data.dataset
        raise UserError(f"data.dataset: {dataset} has other images or labels than {run.folder} was tested on")
    conversion = Conversion(background=run.recipe.transform.background, value_range=run.recipe.data.value_range)
    pictures = []
    for row, image in zip(rows[images], split.fetch(rows[images].tolist()), strict=True):
        try:
            picture = decode(image, conversion)
        except UnreadableImageError as error:
            raise UserError(f"{split.describe(int(row), image)}: {error}") from None
        picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
        pictures.append(picture)
    return pictures


def mistakes_on_a_page(num_runs: int) -> int:
    """How many mistakes `confident_mistakes` has room for, 1 to `MAX_MISTAKES`."""
    return min(MAX_MISTAKES, max(1, int(PAGE_HEIGHT / _mistake_height(num_runs))))


def _mistake_height(num_runs: int) -> float:
    """In inches, with a bar chart for each run."""
    rows, _ = grid_shape(num_runs)
    return 0.1 + rows * (BAR_HEIGHT * TOP_K + 0.22)


def confident_mistakes(
    runs: Sequence[FinishedRun], images: NDArray[np.int64], pictures: Sequence[Image.Image]
) -> Drawing:
    """Images that the first run misclassifies, each next to every run's most likely labels.

    Args:
        images: the pictures' rows in the predictions.
    """
    rows, columns = grid_shape(len(runs))
    bar_width = min((TWO_COLUMNS_WIDTH - PICTURE_WIDTH) / columns, MAX_BAR_WIDTH)
    room = bar_width * POINTS - 8
    title_style: dict[str, Any] = {"fontsize": SMALL, "parse_math": False}
    true_names = [runs[0].class_names[int(runs[0].target[image])] for image in images]
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        height = _mistake_height(len(runs)) * len(images)
        figure = Figure(figsize=(PICTURE_WIDTH + bar_width * columns, height))
        widths = [PICTURE_WIDTH, *[bar_width] * columns]
        grid = figure.add_gridspec(len(images) * rows, 1 + columns, width_ratios=widths)
        for number, (image, picture, name) in enumerate(zip(images, pictures, true_names, strict=True)):
            top = number * rows
            panel = figure.add_subplot(grid[top : top + rows, 0])
            panel.imshow(np.asarray(picture), interpolation="nearest")
            panel.set_axis_off()
            name = shortened(name, PICTURE_WIDTH * POINTS - 6, SMALL, bold=True)
            panel.set_title(name, loc="center", fontweight="bold", **title_style)
            for position, run in enumerate(runs):
                panel = figure.add_subplot(grid[top + position // columns, 1 + position % columns])
                _top_bars(panel, run, int(image), room)
                if number == 0 or rows > 1:
                    panel.set_title(shortened(run.label, room, SMALL), **title_style)
        handles = [Line2D([], [], color=color + "66", linewidth=5) for color in (BLUE, VERMILLION)]
        title = f"probabilities (%) of the labels; most confident mistakes of {runs[0].label}"
        legend(figure, handles, ["true label (bold)", "other label"], title)
    what = f"The most confident mistakes of {runs[0].label}, {len(images)} pictures ({'; '.join(true_names)})"
    top_k = min(TOP_K, len(runs[0].class_names))
    labels = "; ".join(run.label for run in runs)
    return Drawing(figure, f"{what}, each with the {top_k} most likely labels to {labels}.")


def _top_bars(panel: Axes, run: FinishedRun, image: int, width: float) -> None:
    """The most likely labels' probabilities, with names on the bars; the true label's is blue and bold."""
    probability, label = run.logits[image].double().softmax(dim=0).sort(descending=True, stable=True)
    percent, labels = 100 * probability[:TOP_K].numpy(), label[:TOP_K].tolist()
    correct = [label == int(run.target[image]) for label in labels]
    colors = [(BLUE if true else VERMILLION) + "66" for true in correct]
    panel.barh(range(len(labels)), percent, height=0.86, color=colors)
    room = width - text_width(">99.9", SMALL) - 6
    style: dict[str, Any] = {"fontsize": SMALL, "verticalalignment": "center_baseline", "color": BLACK}
    for position, (label, value, true) in enumerate(zip(labels, percent, correct, strict=True)):
        name = shortened(run.class_names[label], room, SMALL, bold=true)
        panel.text(1, position, name, fontweight="bold" if true else "normal", parse_math=False, **style)
        panel.text(100, position, ">99.9" if value > 99.9 else f"{value:.1f}", horizontalalignment="right", **style)
    panel.set(xlim=(0, 100), ylim=(len(labels) - 0.5, -0.5), xticks=[], yticks=[])
    panel.spines["bottom"].set_visible(False)
