"""t-SNE of a network's features."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler
from numpy.typing import NDArray

from cskd_hf.evaluation.predictions import Predictions
from cskd_hf.report.figures import PALETTE, STYLE, WIDTH, save
from cskd_hf.report.names import shortened

MAX_CLASSES = 10
IMAGES_PER_CLASS = 30  # 300 images take less than a second
MIN_IMAGES = 50  # fewer points show nothing [ours]
PERPLEXITY = 30.0
# Past the palette's end, colours repeat with the next marker.
POINT_STYLES = tuple(cycler(marker=("o", "^", "s")) * cycler(color=PALETTE))
MAX_NAME = 22  # characters of a class name in the legend


def feature_map(test: Predictions, class_names: tuple[str, ...], path: Path) -> None:
    """Draw the features of some images of up to `MAX_CLASSES` classes as a PNG.

    For fewer than `MIN_IMAGES` images nothing is drawn, and an older file is removed.

    Args:
        test: with features, (N, D).
    """
    assert test.features is not None
    images = choose_images(test.target, IMAGES_PER_CLASS)
    features, target = test.features[images].double().numpy(), test.target[images].numpy()
    if len(images) < MIN_IMAGES or np.ptp(features, axis=0).max(initial=0) == 0:
        path.unlink(missing_ok=True)
        return
    points, classes = tsne(features, min(PERPLEXITY, (len(images) - 1) / 3)), np.unique(target)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(WIDTH, WIDTH + 0.4))
        axes = figure.subplots()
        for label, style in zip(classes, POINT_STYLES, strict=False):
            axes.plot(*points[target == label].T, **style, linestyle="none", markeredgewidth=0)
        axes.set(xticks=[], yticks=[], title=f"t-SNE of the features of {len(images):,} test images")
        # Matplotlib omits a label that begins with an underscore, and would parse a dollar sign.
        legend = figure.legend(axes.lines, list(map(str, classes)), loc="outside lower center", ncols=2)
        for text, label in zip(legend.get_texts(), classes, strict=True):
            name = shortened(class_names[label], lambda shown: len(shown) <= MAX_NAME)
            text.set(text=name, parse_math=False)
        names = ", ".join(class_names[label] for label in classes)
        save(figure, path, f"t-SNE of the features of {len(images)} test images of the classes {names}.")


def choose_images(target: torch.Tensor, images_per_class: int) -> NDArray[np.int64]:
    """Ascending indices (M,) of the first images of each of up to `MAX_CLASSES` evenly spaced classes."""
    present = np.unique(target.numpy())
    classes = present[np.linspace(0, len(present) - 1, min(MAX_CLASSES, len(present))).round().astype(int)]
    return np.sort(np.concatenate([np.flatnonzero(target.numpy() == label)[:images_per_class] for label in classes]))


def tsne(features: NDArray[np.float64], perplexity: float) -> NDArray[np.float64]:
    """(N, D) → (N, 2), deterministic; the features must not all be equal.

    Source: L. van der Maaten, G. Hinton, "Visualizing Data using t-SNE", JMLR 2008.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if features.shape[1] < 2:  # the initialisation takes two principal components
        features = np.pad(features, ((0, 0), (0, 2 - features.shape[1])))
    with threadpool_limits(1):  # the order of summation depends on the number of threads
        return TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(features).astype(np.float64)
