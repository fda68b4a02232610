"""The paper's figures of single images: their features' t-SNE, and confident mistakes beside their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from cskd_hf.data.decode import UnreadableImageError, decode
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
    legend,
    panels,
    set_title,
    shortened,
    text_width,
)
from cskd_hf.report.figures import BLACK, BLUE, PALETTE, VERMILLION

MAX_CLASSES = 10
IMAGES_PER_CLASS = 100
PERPLEXITY = 30.0
MIN_IMAGES = 4  # below, t-SNE has no neighbours to speak of
MARKERS = ("o", "^", "s")  # beyond the palette, colours come again with another of these

MAX_MISTAKES = 4
TOP_K = 5
PICTURE_WIDTH, MAX_BAR_WIDTH, BAR_HEIGHT = 1.15, 2.15, 0.14  # inches
PICTURE_PIXELS = 480  # of the longer side: more than 300 an inch


def feature_maps(runs: Sequence[FinishedRun]) -> Drawing | None:
    """t-SNE of the penultimate features, a panel a run; the same images in each. None for too few images.

    At most `MAX_CLASSES` classes that have test images, evenly spaced over the labels, and of each the first
    `IMAGES_PER_CLASS` images.
    """
    chosen = chosen_images(runs[0].target)
    if len(chosen) < MIN_IMAGES:
        return None
    target = runs[0].target[chosen].numpy()
    classes = np.unique(target)
    num_classes = len(runs[0].class_names)
    some = f"{len(classes)} of the" if len(classes) < num_classes else "all"
    what = f"{len(chosen):,} test images of {some} {num_classes} classes"
    perplexity = min(PERPLEXITY, (len(chosen) - 1) / 3)
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        figure, axes, _, _, width = panels(len(runs), 0.15)
        for run, panel in zip(runs, axes, strict=True):
            features = run.features[chosen].double().numpy()
            equal = np.ptp(features, axis=0).max(initial=0) == 0
            points = np.zeros((len(features), 2)) if equal else tsne(features, perplexity)
            for number, label in enumerate(classes):
                panel.plot(*points[target == label].T, **_point(number))
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set_visible(True)
            panel.margins(0.04)
            set_title(panel, width - 10, run.label, *(["all features are equal"] if equal else []))
        handles = [Line2D([], [], **_point(number)) for number in range(len(classes))]
        page = figure.get_figwidth() * POINTS
        room = page / max(2, round(page / 165)) - 5 * SMALL  # two or three names beside each other
        names = [shortened(runs[0].class_names[label], room, SMALL) for label in classes]
        legend(figure, handles, names, title=f"t-SNE of {what}, perplexity {perplexity:.3g}", markerscale=2)
    labels = "; ".join(run.label for run in runs)
    return Drawing(figure, f"t-SNE of penultimate features, {what}, perplexity {perplexity:.3g}: {labels}.")


def chosen_images(target: torch.Tensor) -> NDArray[np.int64]:
    """Indices of the images that `feature_maps` draws, (M,), ascending."""
    present = np.unique(target.numpy())
    classes = present[np.linspace(0, len(present) - 1, min(MAX_CLASSES, len(present))).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(target.numpy() == label)[:IMAGES_PER_CLASS] for label in classes]))


def tsne(features: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """(N, D) → (N, 2), the same every time; the features must not all be equal.

    Source: L. van der Maaten, G. Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if features.shape[1] < 2:  # two principal components are what the points start from
        features = np.pad(features, ((0, 0), (0, 2 - features.shape[1])))
    with threadpool_limits(1):  # several threads sum in an order of their own
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features).astype(np.float64)


def _point(number: int) -> dict[str, Any]:
    return {
        "color": PALETTE[number % len(PALETTE)],
        "marker": MARKERS[number // len(PALETTE) % len(MARKERS)],
        "linestyle": "none",
        "markersize": 2.2,
        "markeredgewidth": 0,
    }


def mistakes_on_a_page(num_runs: int) -> int:
    """How many pictures `confident_mistakes` has room for, 1 to `MAX_MISTAKES`."""
    _, _, height = _mistake_layout(num_runs)
    return min(MAX_MISTAKES, max(1, int(PAGE_HEIGHT / height)))


def _mistake_layout(num_runs: int) -> tuple[int, int, float]:
    """Runs beside each other, rows of runs to a picture, and the picture's height with its title in inches."""
    columns = 2 if num_runs == 4 else min(num_runs, 3)
    rows = -(-num_runs // columns)
    return columns, rows, 0.1 + rows * (BAR_HEIGHT * TOP_K + 0.22)


def most_confident_mistakes(run: FinishedRun, num_mistakes: int) -> NDArray[np.int64]:
    """Indices of at most so many misclassified images, the most confident first; ties in the images' order."""
    wrong = (run.logits.argmax(dim=1) != run.target).nonzero()[:, 0]
    # By the odds, which tell apart what probabilities rounded to 1 do not.
    logits = run.logits[wrong].double()
    top, predicted = logits.max(dim=1)
    odds = top - logits.scatter(1, predicted[:, None], -torch.inf).logsumexp(dim=1)
    return wrong[odds.sort(descending=True, stable=True).indices[:num_mistakes]].numpy()


def pictures_of(run: FinishedRun, images: NDArray[np.int64]) -> list[Image.Image]:
    """The pictures behind some rows of a run's predictions, no larger than they are printed.

    Raises:
        UserError: the data is not there, is not what the run was tested on, or cannot be decoded.
    """
    split = load_split(run.data, run.class_names)
    rows = run.row.numpy()
    if rows.max() >= len(split) or not np.array_equal(split.labels[rows], run.target.numpy()):
        raise UserError(
            f"data.dataset: {run.data.dataset} has other images or labels than when {run.folder} was tested"
        )
    pictures = []
    for row, image in zip(rows[images], split.fetch(rows[images].tolist()), strict=True):
        try:
            picture = decode(image)
        except UnreadableImageError as error:
            raise UserError(f"{split.describe(int(row), image)}: {error}") from None
        picture.thumbnail((PICTURE_PIXELS, PICTURE_PIXELS))
        pictures.append(picture)
    return pictures


def confident_mistakes(
    runs: Sequence[FinishedRun], images: NDArray[np.int64], pictures: Sequence[Image.Image]
) -> Drawing:
    """Pictures that the first run misclassifies, and beside each the most likely labels to every run.

    Args:
        images: which rows of the predictions the pictures are.
    """
    columns, rows_each, height = _mistake_layout(len(runs))
    bar_width = min((TWO_COLUMNS_WIDTH - PICTURE_WIDTH) / columns, MAX_BAR_WIDTH)
    top_k = min(TOP_K, len(runs[0].class_names))
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(PICTURE_WIDTH + bar_width * columns, height * len(images)))
        widths = [PICTURE_WIDTH, *[bar_width] * columns]
        grid = figure.add_gridspec(len(images) * rows_each, 1 + columns, width_ratios=widths)
        for number, (image, picture) in enumerate(zip(images, pictures, strict=True)):
            top = number * rows_each
            panel = figure.add_subplot(grid[top : top + rows_each, 0])
            panel.imshow(np.asarray(picture), interpolation="nearest")
            panel.set_axis_off()
            name = runs[0].class_names[int(runs[0].target[image])]
            panel.set_title(
                shortened(name, PICTURE_WIDTH * POINTS - 6, SMALL, bold=True),
                fontsize=SMALL,
                fontweight="bold",
                loc="center",
                parse_math=False,
            )
            for place, run in enumerate(runs):
                panel = figure.add_subplot(grid[top + place // columns, 1 + place % columns])
                _top_bars(panel, run, int(image), top_k, bar_width * POINTS - 8)
                if number == 0 or rows_each > 1:
                    panel.set_title(
                        shortened(run.label, bar_width * POINTS - 8, SMALL), fontsize=SMALL, parse_math=False
                    )
        handles = [Line2D([], [], color=color + "66", linewidth=5) for color in (BLUE, VERMILLION)]
        title = f"probabilities (%) of the labels; most confident mistakes of {runs[0].label}"
        legend(figure, handles, ["true label (bold)", "other label"], title=title)
    names = [runs[0].class_names[int(runs[0].target[image])] for image in images]
    return Drawing(
        figure,
        f"The most confident mistakes of {runs[0].label}, {len(images)} pictures ({'; '.join(names)}), each with the "
        f"{top_k} most likely labels to {'; '.join(run.label for run in runs)}.",
    )


def _top_bars(panel: Axes, run: FinishedRun, image: int, top_k: int, width: float) -> None:
    """The probabilities of the most likely labels, their names on the bars; the true one's bold and in blue."""
    probability, label = run.logits[image].double().softmax(dim=0).sort(descending=True, stable=True)
    target = int(run.target[image])
    percent, labels = 100 * probability[:top_k].numpy(), label[:top_k].tolist()
    colors = [(BLUE if label == target else VERMILLION) + "66" for label in labels]
    panel.barh(range(top_k), percent, height=0.86, color=colors)
    room = width - text_width("100.0", SMALL) - 6
    for place, (label, value) in enumerate(zip(labels, percent, strict=True)):
        true = label == target
        name = shortened(run.class_names[label], room, SMALL, bold=true)
        style: dict[str, Any] = {"fontsize": SMALL, "verticalalignment": "center_baseline", "color": BLACK}
        panel.text(1, place, name, fontweight="bold" if true else "normal", parse_math=False, **style)
        panel.text(100, place, f"{value:.1f}", horizontalalignment="right", **style)
    panel.set(xlim=(0, 100), ylim=(top_k - 0.5, -0.5), xticks=[], yticks=[])
    panel.spines["bottom"].set_visible(False)
