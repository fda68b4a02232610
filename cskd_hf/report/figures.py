"""The two figures of a run: learning curves and the reliability diagram.

Figures are drawn by Agg without pyplot: no display, no global state, no leak over a sweep. Equal numbers give equal
bytes, and each PNG has its alternative text in its `Description` chunk.
"""

from __future__ import annotations

import io
from itertools import cycle
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cskd_hf.evaluation.confidence import NUM_BINS, ReliabilityBins, ece, reliability_bins
from cskd_hf.files import write_bytes

# Okabe & Ito, "Color Universal Design" (2008): distinguishable under the common colour blindnesses. Without its yellow,
# too pale for a line on white.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK, BLUE, VERMILLION, *_ = PALETTE

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)

DIAGRAM_BINS = 10  # as in the paper's diagrams; the ECE printed in the panel has the tables' bins
MAX_MARKERS = 30  # curves with fewer points mark each, so that a single epoch is visible
LOG_RANGE = 20  # positive losses that span a larger factor get a logarithmic axis


def learning_curves(lines: list[dict[str, float]], path: Path) -> None:
    """Draw losses and learning rate, top-1 error, ECE and NLL by epoch.

    Args:
        lines: metrics.jsonl, one dict per epoch. If a key is missing, the curve joins its neighbours.
        path: the PNG to write; its folder is created.
    """
    keys = list(dict.fromkeys(key for line in lines for key in line))
    # These come first, so that a colour has the same meaning in every run.
    usual = ["train/loss", "train/task_loss", "train/kd_loss"]
    term_colors = _colors(usual + [key for key in keys if key.startswith("train/") and key != "train/top1_error"])
    split_colors = _colors(["train", "test", "holdout"] + [key.split("/")[0] for key in keys if "/" in key])

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.6))
        columns = (["loss", "loss", "loss", "lr"], ["top1_error"] * 4, ["ece", "ece", "nll", "nll"])
        panels = figure.subplot_mosaic([list(row) for row in zip(*columns, strict=True)])
        for axes in panels.values():
            # Half an epoch of margin, so that a single epoch is readable too.
            axes.set_xlim(min(line["epoch"] for line in lines) + 0.5, max(line["epoch"] for line in lines) + 1.5)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
            axes.set_xlabel("epoch")
        for name in ("loss", "ece"):  # the panel below shares the axis
            panels[name].tick_params(labelbottom=False)
            panels[name].set_xlabel("")

        panels["loss"].set_title("training loss")
        for key, color in term_colors.items():
            _curve(panels["loss"], lines, key, color, key.removeprefix("train/"))
        losses = [line[key] for line in lines for key in term_colors if key in line]
        if losses and min(losses) > 0 and max(losses) > LOG_RANGE * min(losses):
            panels["loss"].set_yscale("log")

        panels["lr"].set_title("learning rate", fontsize=STYLE["font.size"])
        _curve(panels["lr"], lines, "lr", BLACK, "lr", drawstyle="steps-post")
        top = max((line["lr"] for line in lines if "lr" in line), default=1)
        panels["lr"].set(ylim=(0, 1.15 * top), yticks=(0, top), yticklabels=("0", f"{top:.3g}"))

        for metric, title in (("top1_error", "top-1 error (%)"), ("ece", "ECE (%)"), ("nll", "NLL (nats)")):
            panels[metric].set_title(title)
            panels[metric].update_datalim([(0, 0)], updatex=False)  # from 0, with a margin above the curves
            for split, color in split_colors.items():
                _curve(panels[metric], lines, f"{split}/{metric}", color, split)
            panels[metric].set_ylim(bottom=0)
        for name in ("loss", "top1_error"):  # ECE and NLL share the colours of the error
            if panels[name].lines:
                panels[name].legend()

        splits = ", ".join(str(line.get_label()) for line in panels["top1_error"].lines)
        panel_names = "loss, learning rate, top-1 error, ECE, NLL"
        _save(figure, path, f"Learning curves over epochs ({len(lines)}): {panel_names} ({splits}).")


def reliability_diagram(logits: Tensor, target: Tensor, temperature: float | None, path: Path, title: str = "") -> None:
    """Draw accuracy against confidence, above a histogram of the confidences.

    Args:
        logits: (N, K).
        target: (N,) class indices.
        temperature: if given, a second panel shows `logits / temperature`.
        path: the PNG to write; its folder is created.
        title: printed above the panels.
    """
    views = [("as trained", 1.0)]
    if temperature is not None:
        views.append((f"temperature {temperature:.3f}", temperature))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * len(views), 4.4))
        # A dollar sign in a run's name must not fail the figure after hours of training.
        figure.suptitle(title, x=0.02, horizontalalignment="left", parse_math=False)
        panels = figure.subplots(2, len(views), sharex=True, sharey="row", squeeze=False, height_ratios=(4, 1))
        errors = []
        for (name, divisor), (diagram, histogram) in zip(views, panels.T, strict=True):
            error = ece(logits, target, temperature=divisor)
            errors.append(f"ECE {error:.2f} % {name}")
            _reliability(diagram, histogram, reliability_bins(logits, target, DIAGRAM_BINS, divisor))
            diagram.set_title(f"{name}\nECE {error:.2f} % ({NUM_BINS} bins)")
        panels[0, 0].set_ylabel("accuracy (%)")
        # Empty in the usual, overconfident case.
        panels[0, 0].legend(loc="upper left", frameon=True, framealpha=0.9, edgecolor="none")
        panels[1, 0].set_ylabel("images (%)")
        _save(figure, path, f"Reliability diagram of {len(target)} images: {', '.join(errors)}.")


def _reliability(diagram: Axes, histogram: Axes, bins: ReliabilityBins) -> None:
    """Fill one column of the diagram; both axes in percent."""
    accuracy, confidence = 100 * bins.accuracy.numpy(), 100 * bins.confidence.numpy()  # NaN: no bar
    share = 100 * bins.count.numpy() / bins.count.sum().item()
    width = 100 / DIAGRAM_BINS
    left = [width * index for index in range(DIAGRAM_BINS)]
    right = [edge + width for edge in left]
    diagram.bar(left, accuracy, width, align="edge", color=BLUE + "80", edgecolor="white")
    # The gap ends at the bin's mean confidence, as in the ECE, not at the middle of the bin. It may cover part of an
    # underconfident bar, whose height the accuracy line still shows.
    diagram.bar(
        left,
        confidence - accuracy,
        width,
        bottom=accuracy,
        align="edge",
        facecolor="#FBE3D4",
        edgecolor=VERMILLION,
        hatch="////",
        linewidth=0,
        label="gap to confidence",
    )
    diagram.hlines(accuracy, left, right, color=BLUE, linewidth=2.5, label="accuracy")
    diagram.plot([0, 100], [0, 100], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
    diagram.set(xlim=(0, 100), ylim=(0, 100))
    histogram.bar(left, share, width, align="edge", color="#767676", edgecolor="white")
    histogram.set_xlabel("confidence (%)")
    histogram.yaxis.set_major_locator(MaxNLocator(3))


def _colors(names: list[str]) -> dict[str, str]:
    return dict(zip(dict.fromkeys(names), cycle(PALETTE), strict=False))


def _curve(
    axes: Axes, lines: list[dict[str, float]], key: str, color: str, label: str, drawstyle: str = "default"
) -> None:
    """Plot one key over the epochs that have it; without any there is no legend entry either."""
    points = [(line["epoch"] + 1, line[key]) for line in lines if key in line]
    if points:
        marker = "o" if len(points) <= MAX_MARKERS else ""
        axes.plot(*zip(*points, strict=True), color=color, label=label, marker=marker, drawstyle=drawstyle)


def render(figure: Figure, description: str, format: Literal["png", "pdf"] = "png") -> bytes:
    """A figure as a file, with its alternative text inside."""
    # Omitted, so that equal figures have equal bytes: they hold matplotlib's version and the time.
    omitted = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    text_key = {"png": "Description", "pdf": "Subject"}
    metadata = {**dict.fromkeys(omitted[format]), text_key[format]: description}
    file = io.BytesIO()
    figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()


def _save(figure: Figure, path: Path, description: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render(figure, description))
