"""The paper's figures of predictions: reliability, mistakes' log-probabilities, superclasses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.rcsetup import cycler
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cskd_hf.evaluation.confidence import NUM_BINS, ReliabilityBins, ece, reliability_bins
from cskd_hf.evaluation.metrics import top_k_error
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

LOWEST = -20.0  # nats: anything below 2e-9 falls into the first bin of the histograms
HISTOGRAM_BINS = 25
# Past the palette's end, colours repeat with the next line style.
LINES = tuple(cycler(linestyle=("-", "--", ":")) * cycler(color=PALETTE))
MAX_NUMBERED_SIZE = 20  # a larger superclass matrix has a colour bar instead of numbers
SHARE_COLOR = "#DDDDDD"


def reliability_diagrams(runs: Sequence[FinishedRun]) -> Drawing:
    """Accuracy against confidence, one panel per run, over the share of images at each confidence.

    A point is a bin's mean confidence and its accuracy; ECE sums their distances.
    """
    original: dict[str, Any] = {"color": BLUE, "marker": "o", "markersize": 3}
    calibrated: dict[str, Any] = {"color": BLACK, "linestyle": "--", "linewidth": 0.8}
    scaled: dict[str, Any] = {"color": VERMILLION, "linewidth": 0.9}
    errors = []
    with matplotlib.rc_context(PAPER_STYLE):
        figure, axes, width = panels(len(runs), 0.5, xlabel="confidence (%)", ylabel="accuracy (%)")
        for run, panel in zip(runs, axes, strict=True):
            bins = reliability_bins(run.logits, run.target, DIAGRAM_BINS)
            share = 100 * bins.count.numpy() / len(run.target)
            step = 100 / DIAGRAM_BINS
            panel.bar(np.arange(DIAGRAM_BINS) * step, share, step, align="edge", color=SHARE_COLOR, edgecolor="white")
            panel.plot([0, 100], [0, 100], **calibrated)
            lines = [f"ECE {ece(run.logits, run.target):.2f} %"]
            if run.temperature is not None:
                points = _points(reliability_bins(run.logits, run.target, DIAGRAM_BINS, run.temperature))
                panel.plot(*points, **scaled, clip_on=False)
                error = ece(run.logits, run.target, temperature=run.temperature)
                lines.append(f"ECE {error:.2f} % with T = {run.temperature:.3g}")
            panel.plot(*_points(bins), **original, clip_on=False)
            ticks = range(0, 101, 20)
            panel.set(xlim=(0, 100), ylim=(0, 100), xticks=ticks, yticks=ticks)
            set_title(panel, width - 30, run.label, *lines)
            errors.append(f"{run.label}: {', '.join(lines)}")
        entries = {"as trained": Line2D([], [], **original)}
        if any(run.temperature is not None for run in runs):
            entries["logits divided by T"] = Line2D([], [], **scaled)
        entries["calibrated"] = Line2D([], [], **calibrated)
        title = f"{len(runs[0].target):,} test images in {DIAGRAM_BINS} bins; ECE: {NUM_BINS} bins"
        handles = [*entries.values(), Patch(facecolor=SHARE_COLOR)]
        legend(figure, handles, [*entries, "share of images (%)"], title)
    return Drawing(figure, f"Reliability diagrams, {title}. {'; '.join(errors)}.")


def _points(bins: ReliabilityBins) -> tuple[Tensor, Tensor]:
    """Confidence and accuracy in percent, without empty bins, whose NaN would break the line."""
    filled = bins.count > 0
    return 100 * bins.confidence[filled], 100 * bins.accuracy[filled]


def log_probabilities(runs: Sequence[FinishedRun]) -> Drawing | None:
    """Log-probabilities, in nats, of the predicted and of the true label over the misclassified test images.

    Each run's histogram sums to 100 % of its misclassified images. None where no run misclassifies any.
    """
    values = []
    for run in runs:
        predicted = run.logits.argmax(dim=1)
        wrong = (predicted != run.target).nonzero()[:, 0]
        labels = torch.stack([predicted[wrong], run.target[wrong]], dim=1)
        log_probability = run.logits[wrong].double().log_softmax(dim=1).gather(1, labels)
        values.append(log_probability.numpy().clip(LOWEST, 0))
    if not any(map(len, values)):
        return None
    names = [f"{run.label} (n = {len(wrong):,})" for run, wrong in zip(runs, values, strict=True)]
    with matplotlib.rc_context(PAPER_STYLE):
        figure = Figure(figsize=(TWO_COLUMNS_WIDTH, 2.7))
        axes = figure.subplots(1, 2, sharey=True)
        for column, (panel, label) in enumerate(zip(axes, ("predicted", "true"), strict=True)):
            low = np.concatenate(values)[:, column].min()
            edges = np.linspace(min(np.floor(low), -1), 0, HISTOGRAM_BINS + 1)
            for value, style in zip(values, cycle(LINES), strict=False):
                share = 100 * np.histogram(value[:, column], edges)[0] / max(len(value), 1)
                panel.stairs(share, edges, **style)
            first = f"\nfirst bin: \N{MINUS SIGN}{-LOWEST:g} and below" if edges[0] == LOWEST else ""
            panel.set(xlabel=f"log-probability of the {label} label (nats){first}", xlim=(edges[0], 0))
            panel.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes[0].set_ylabel("misclassified images (%)")
        axes[0].set_ylim(bottom=0)
        legend(figure, [Line2D([], [], **style) for style in islice(cycle(LINES), len(runs))], names)
    what = "Histograms of the log-probability of the predicted and of the true label over misclassified test images"
    return Drawing(figure, f"{what}: {'; '.join(names)}")


def superclasses_of(class_names: Sequence[str]) -> list[str]:
    """The superclass of each class named `superclass: class`; empty unless all have one and some share one."""
    prefixes = [name.partition(": ")[0] for name in class_names if ": " in name]
    grouped = len(prefixes) == len(class_names) and 2 <= len(set(prefixes)) < len(prefixes)
    return prefixes if grouped else []


def superclass_matrices(runs: Sequence[FinishedRun]) -> Drawing | None:
    """Superclass confusion matrices in percent of each row, one panel per run; None without superclasses.

    Superclass accuracy is over all images.
    """
    superclass_of_class = superclasses_of(runs[0].class_names)
    if not superclass_of_class:
        return None
    superclasses = list(dict.fromkeys(superclass_of_class))
    index = torch.tensor([superclasses.index(name) for name in superclass_of_class])
    size, names = len(superclasses), [shortened(name, 60, SMALL) for name in superclasses]
    max_columns = 3 if size <= 4 else 2 if size <= 8 else 1
    labels = {"xlabel": "predicted superclass (%)", "ylabel": "true superclass"}
    results = []
    with matplotlib.rc_context(PAPER_STYLE | {"axes.grid": False}):
        figure, axes, width = panels(len(runs), 0.4, max_columns, **labels)
        for run, panel in zip(runs, axes, strict=True):
            truth, predicted = index[run.target], index[run.logits.argmax(dim=1)]
            counts = torch.bincount(size * truth + predicted, minlength=size * size).view(size, size).double()
            percent = (100 * counts / counts.sum(dim=1, keepdim=True)).numpy()  # NaN for a superclass without images
            image = panel.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
            if size <= MAX_NUMBERED_SIZE:
                for (row, column), value in np.ndenumerate(percent):
                    text = "–" if np.isnan(value) else f"{value:.1f}" if size <= 8 else f"{value:.0f}"
                    color = "white" if value > 60 else BLACK
                    panel.text(column, row, text, ha="center", va="center", color=color, fontsize=SMALL)
            panel.set_xticks(range(size), names, parse_math=False)
            panel.set_yticks(range(size), names, parse_math=False)
            panel.spines[:].set_visible(False)
            panel.tick_params(length=0)
            if max(text_width(name, SMALL) for name in names) > (width - 70) / size:
                for label in panel.get_xticklabels():
                    label.set(rotation=45, horizontalalignment="right", rotation_mode="anchor")
            accuracy = 100 * float((truth == predicted).double().mean())
            error = f"top-1 error {top_k_error(run.logits, run.target, 1):.2f} %"
            set_title(panel, width - 50, run.label, error, f"superclass acc. {accuracy:.2f} %")
            results.append(f"{run.label}: {error}, superclass accuracy {accuracy:.2f} %")
        if size > MAX_NUMBERED_SIZE:
            figure.colorbar(image, ax=axes, label="%", aspect=40, pad=0.01)
    what = f"Share of each true superclass ({', '.join(superclasses)}) predicted as each superclass, in percent"
    return Drawing(figure, f"{what}, over {len(runs[0].target)} test images: {'; '.join(results)}.")
