"""The paper's figures of what runs predict: reliability, mistakes' log-probabilities, superclasses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cskd_hf.evaluation.calibration import apply_temperature
from cskd_hf.evaluation.metrics import NUM_BINS, ReliabilityBins, ece, reliability_bins, top_k_error
from cskd_hf.paper.finished_runs import FinishedRun
from cskd_hf.paper.page_style import (
    PAPER_STYLE,
    SMALL,
    TWO_COLUMNS_WIDTH,
    Drawing,
    legend,
    panels,
    set_title,
    shortened,
    text_width,
)
from cskd_hf.report.figures import BLACK, BLUE, DIAGRAM_BINS, PALETTE, VERMILLION

LOWEST = -20.0  # nats: what is less likely than 2e-9 is counted in the first bin of the histograms
HISTOGRAM_BINS = 25
LINE_STYLES = ("-", "--", ":")  # beyond the palette, colours come again with another of these
MAX_SIZE_OF_NUMBERS = 20  # a larger matrix of superclasses has a colour bar instead
SHARE_COLOR = "#DDDDDD"


def reliability_diagrams(runs: Sequence[FinishedRun]) -> Drawing:
    """Accuracy against confidence, a panel a run, over the share of images at each confidence.

    A point is a bin's mean confidence and its accuracy: their distance is what ECE sums.
    """
    with matplotlib.rc_context(PAPER_STYLE):
        figure, axes, left, bottom, width = panels(len(runs), 0.5)
        found = []
        for run, panel in zip(runs, axes, strict=True):
            bins = reliability_bins(run.logits, run.target, DIAGRAM_BINS)
            share = 100 * bins.count.numpy() / len(run.target)
            step = 100 / DIAGRAM_BINS
            panel.bar(np.arange(DIAGRAM_BINS) * step, share, step, align="edge", color=SHARE_COLOR, edgecolor="white")
            panel.plot([0, 100], [0, 100], color=BLACK, linestyle="--", linewidth=0.8)
            errors = [f"ECE {ece(run.logits, run.target):.2f} %"]
            if run.temperature is not None:
                scaled = apply_temperature(run.logits, run.temperature)
                of_scaled = _points(reliability_bins(scaled, run.target, DIAGRAM_BINS))
                panel.plot(*of_scaled, color=VERMILLION, linewidth=0.9, clip_on=False)
                errors.append(f"ECE {ece(scaled, run.target):.2f} % with T = {run.temperature:.2f}")
            panel.plot(*_points(bins), color=BLUE, marker="o", markersize=3, clip_on=False)
            panel.set(xlim=(0, 100), ylim=(0, 100))
            panel.set_xticks(range(0, 101, 20))
            panel.set_yticks(range(0, 101, 20))
            set_title(panel, width - 30, run.label, *errors)
            found.append(f"{run.label}: {', '.join(errors)}")
        for panel in axes:
            panel.tick_params(labelleft=panel in left, labelbottom=panel in bottom)
        for panel in left:
            panel.set_ylabel("accuracy (%)")
        for panel in bottom:
            panel.set_xlabel("confidence (%)")
        handles = [
            Line2D([], [], color=BLUE, marker="o", markersize=3),
            Line2D([], [], color=BLACK, linestyle="--", linewidth=0.8),
            Patch(facecolor=SHARE_COLOR),
        ]
        names = ["as trained", "calibrated", "share of images (%)"]
        if any(run.temperature is not None for run in runs):
            handles.insert(1, Line2D([], [], color=VERMILLION, linewidth=0.9))
            names.insert(1, "logits divided by T")
        what = f"{len(runs[0].target):,} test images in {DIAGRAM_BINS} bins; ECE: {NUM_BINS} bins"
        legend(figure, handles, names, title=what)
    return Drawing(figure, f"Reliability diagrams, {what}. {'; '.join(found)}.")


def _points(bins: ReliabilityBins) -> tuple[Tensor, Tensor]:
    """Confidence and accuracy of the bins that hold an image, in percent: a line breaks at an empty one's NaN."""
    filled = bins.count > 0
    return 100 * bins.confidence[filled], 100 * bins.accuracy[filled]


def log_probabilities(runs: Sequence[FinishedRun]) -> Drawing | None:
    """Of the misclassified test images, the log-probability of the predicted label and of the true one, in nats.

    Each run's histogram sums to 100 % of its own misclassified images. None where no run misclassifies any.
    """
    values = []
    for run in runs:
        predicted = run.logits.argmax(dim=1)
        wrong = (predicted != run.target).nonzero()[:, 0]
        log_probability = run.logits[wrong].double().log_softmax(dim=1)
        columns = torch.stack([predicted[wrong], run.target[wrong]], dim=1)
        values.append(log_probability.gather(1, columns).numpy().clip(LOWEST, 0))
    if not any(map(len, values)):
        return None
    names = [f"{run.label} (n = {len(own):,})" for run, own in zip(runs, values, strict=True)]
    with matplotlib.rc_context(PAPER_STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_WIDTH, 2.7))
        axes = figure.subplots(1, 2, sharey=True)
        for column, (panel, label) in enumerate(zip(axes, ("predicted", "true"), strict=True)):
            low = min(own[:, column].min() for own in values if len(own))
            edges = np.linspace(min(np.floor(low), -1), 0, HISTOGRAM_BINS + 1)
            for number, own in enumerate(values):
                share = 100 * np.histogram(own[:, column], edges)[0] / max(len(own), 1)
                panel.stairs(share, edges, **_line(number))
            cut = f"\nfirst bin: {LOWEST:g} and below".replace("-", "\N{MINUS SIGN}") if edges[0] == LOWEST else ""
            panel.set_xlabel(f"log-probability of the {label} label (nats){cut}")
            panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            panel.set_xlim(edges[0], 0)
        axes[0].set_ylabel("misclassified images (%)")
        axes[0].set_ylim(bottom=0)
        legend(figure, [Line2D([], [], **_line(number)) for number in range(len(runs))], names)
    return Drawing(
        figure,
        "Histograms of the log-probability of the predicted and of the true label over misclassified test images: "
        + "; ".join(names),
    )


def _line(number: int) -> dict[str, Any]:
    """Colour and dashes of a run."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": LINE_STYLES[number // len(PALETTE) % len(LINE_STYLES)],
    }


def superclasses_of(class_names: Sequence[str]) -> list[str]:
    """The superclass of each class named `superclass: class`; nothing where one has none, or they group no classes."""
    prefixes = [name.partition(": ")[0] for name in class_names if ": " in name]
    grouped = len(prefixes) == len(class_names) and 2 <= len(set(prefixes)) < len(prefixes)
    return prefixes if grouped else []


def superclass_matrices(runs: Sequence[FinishedRun]) -> Drawing | None:
    """The superclass of the prediction given that of the truth, in percent of each row; a panel a run.

    Superclass accuracy is over all images. None where the classes' names tell no superclasses.
    """
    of_class = superclasses_of(runs[0].class_names)
    if not of_class:
        return None
    names = list(dict.fromkeys(of_class))  # in the order of the classes
    number = torch.tensor([names.index(name) for name in of_class])
    size, shown = len(names), [shortened(name, 60, SMALL) for name in names]
    max_columns = 3 if size <= 4 else 2 if size <= 8 else 1
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        figure, axes, left, bottom, width = panels(len(runs), 0.4, max_columns)
        found = []
        for run, panel in zip(runs, axes, strict=True):
            truth, predicted = number[run.target], number[run.logits.argmax(dim=1)]
            counts = torch.bincount(size * truth + predicted, minlength=size * size).view(size, size).double()
            percent = (100 * counts / counts.sum(dim=1, keepdim=True)).numpy()  # NaN where no image is tested
            image = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            if size <= MAX_SIZE_OF_NUMBERS:
                for row, column in np.ndindex(size, size):
                    value = percent[row, column]
                    text = "–" if np.isnan(value) else f"{value:.1f}" if size <= 8 else f"{value:.0f}"
                    color = "white" if value > 60 else BLACK
                    panel.text(column, row, text, ha="center", va="center", color=color, fontsize=SMALL)
            panel.set_xticks(range(size), shown, parse_math=False)
            panel.set_yticks(range(size), shown, parse_math=False)
            panel.spines[:].set_visible(False)
            panel.tick_params(length=0, labelleft=panel in left, labelbottom=panel in bottom)
            if max(text_width(name, SMALL) for name in shown) > (width - 70) / size:
                for label in panel.get_xticklabels():
                    label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
            accuracy = 100 * float((truth == predicted).double().mean())
            error = f"top-1 error {top_k_error(run.logits, run.target, 1):.2f} %"
            set_title(panel, width - 50, run.label, error, f"superclass acc. {accuracy:.2f} %")
            found.append(f"{run.label}: {error}, superclass accuracy {accuracy:.2f} %")
        if size > MAX_SIZE_OF_NUMBERS:
            figure.colorbar(image, ax=axes, label="%", aspect=40, pad=0.01)
        for panel in left:
            panel.set_ylabel("true superclass")
        for panel in bottom:
            panel.set_xlabel("predicted superclass (%)")
    return Drawing(
        figure,
        f"Share of each true superclass ({', '.join(names)}) predicted as each superclass, in percent, over "
        f"{len(runs[0].target)} test images: {'; '.join(found)}.",
    )
