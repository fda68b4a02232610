"""The reliability diagram of a run, and how matplotlib figures are styled and saved.

Figures are drawn by Agg without pyplot: no display, no global state, no leak over a sweep. Equal numbers give equal
bytes, and each PNG has its alternative text in its `Description` chunk.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from cskd_hf.evaluation.confidence import NUM_BINS, ece, reliability_bins, wilson_interval
from cskd_hf.files import write_bytes

# Okabe & Ito, "Color Universal Design" (2008): distinguishable under the common colour blindnesses. Without its yellow,
# too pale for a line on white.
PALETTE = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLACK, BLUE, VERMILLION, *_ = PALETTE

STYLE = matplotlib.rc_params_from_file(Path(__file__).with_name("figures.mplstyle"), use_default_template=False)

DIAGRAM_BINS = 10  # as in the paper's diagrams; the ECE printed has the tables' bins
WIDTH = 3.8  # inches: 365 CSS pixels, which a phone shows without shrinking


def reliability_diagram(logits: Tensor, target: Tensor, temperature: float | None, path: Path) -> None:
    """Draw accuracy against confidence with 95 % intervals, above a histogram of the confidences, as a PNG.

    With a temperature, a second series shows `logits / temperature`.

    Args:
        logits: (N, K).
        target: (N,) class indices.
    """
    views = [("as trained", 1.0, VERMILLION, "o")]
    if temperature is not None:
        views.append((f"divided by the temperature {temperature:.4g}", temperature, BLUE, "s"))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.8))
        diagram, histogram = figure.subplots(2, sharex=True, height_ratios=(4, 1))
        diagram.plot([0, 100], [0, 100], color=BLACK, linestyle="--", linewidth=1, label="calibrated")
        errors = []
        for name, divisor, color, marker in views:
            errors.append(f"{name}: ECE {ece(logits, target, temperature=divisor):.2f} %")
            bins = reliability_bins(logits, target, DIAGRAM_BINS, divisor)
            filled = bins.count > 0
            accuracy, confidence = 100 * bins.accuracy[filled], 100 * bins.confidence[filled]
            low, high = (100 * end for end in wilson_interval(bins.accuracy[filled], bins.count[filled]))
            diagram.errorbar(
                confidence, accuracy, (accuracy - low, high - accuracy), color=color, marker=marker, label=errors[-1]
            )
            share = 100 * bins.count.numpy() / len(target)
            histogram.stairs(share, [10 * edge for edge in range(DIAGRAM_BINS + 1)], color=color)
        diagram.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
        diagram.set_title(f"reliability, {len(target):,} images, 95 % intervals")
        histogram.set(xlabel="confidence (%)", ylabel="images (%)")
        histogram.yaxis.set_major_locator(MaxNLocator(3))
        figure.legend(loc="outside lower center")
        save(figure, path, f"Reliability diagram of {len(target)} images: {', '.join(errors)}; ECE in {NUM_BINS} bins.")


def render(figure: Figure, description: str, format: Literal["png", "pdf"] = "png") -> bytes:
    """A figure as a file, with its alternative text inside."""
    # Omitted, so that equal figures have equal bytes: they hold matplotlib's version and the time.
    omitted = {"png": ("Software",), "pdf": ("Creator", "Producer", "CreationDate")}
    text_key = {"png": "Description", "pdf": "Subject"}
    metadata = {**dict.fromkeys(omitted[format]), text_key[format]: description}
    file = io.BytesIO()
    figure.savefig(file, format=format, metadata=metadata)
    return file.getvalue()


def save(figure: Figure, path: Path, description: str) -> None:
    """Write a PNG with its alternative text; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, render(figure, description))
