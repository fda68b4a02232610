"""The page that the paper's figures are made for: two columns, letters of 7 to 8 points, one panel a run.

Draw under `matplotlib.rc_context(PAPER_STYLE)`. A name is printed as it is, shortened where it does not fit, and never
read as a formula.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from cskd_hf.report.figures import STYLE, render

# Inches: the columns of a paper, and what is left of a page beside a caption.
ONE_COLUMN_WIDTH = 3.3
TWO_COLUMNS_WIDTH = 6.9
PAGE_HEIGHT = 8.5
MAX_PANEL_HEIGHT = 3.6
LINE_HEIGHT = 0.15  # of a legend
POINTS = 72  # an inch

SMALL = 7.0  # points
FORMATS = ("pdf", "png")

PAPER_STYLE = matplotlib.RcParams(
    STYLE
    | {
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.labelsize": 8,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "legend.title_fontsize": SMALL,
        "legend.borderpad": 0,
        "legend.borderaxespad": 0.2,
        "axes.titlepad": 3,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": 1.2,
        "figure.constrained_layout.h_pad": 0.05,
        "figure.constrained_layout.w_pad": 0.03,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,  # TrueType: conferences refuse matplotlib's own Type 3
    }
)


class Drawing(NamedTuple):
    """A figure, and what it shows in words."""

    figure: Figure
    description: str

    def files(self) -> dict[str, bytes]:
        """The figure in every format of `FORMATS`, by the format's extension."""
        with matplotlib.rc_context(PAPER_STYLE):
            return {"pdf": render(self.figure, self.description, "pdf"), "png": render(self.figure, self.description)}


class Panels(NamedTuple):
    """Panels in rows; `left` and `bottom` are those with nothing beside or below them."""

    figure: Figure
    axes: list[Axes]
    left: list[Axes]
    bottom: list[Axes]
    width: float  # of one, in points, its own labels included


def panels(num_panels: int, extra_height: float, max_columns: int = 3) -> Panels:
    """A figure with one panel a run, square but for `extra_height` inches, at most `max_columns` beside each other."""
    columns = min(num_panels, max_columns)
    if num_panels == max_columns + 1:
        columns = -(-num_panels // 2)  # four are two and two, not three and one
    rows = -(-num_panels // columns)
    each = ONE_COLUMN_WIDTH if num_panels == 1 < max_columns else TWO_COLUMNS_WIDTH / max_columns
    height = (min(each, MAX_PANEL_HEIGHT) + extra_height) * rows
    figure = Figure(figsize=(each * columns, height))
    grid = [axes for row in figure.subplots(rows, columns, squeeze=False) for axes in row]
    for axes in grid[num_panels:]:
        axes.remove()
    axes = grid[:num_panels]
    return Panels(figure, axes, axes[::columns], axes[-columns:], each * POINTS)


def set_title(axes: Axes, width: float, label: str, *lines: str) -> None:
    """A run's label above its panel, on two lines if need be, and further lines; none wider than `width` points."""
    size = PAPER_STYLE["axes.titlesize"]
    label, rest = shortened(label, sys.maxsize, size), ""
    while text_width(label, size) > width and ", " in label:
        label, _, part = label.rpartition(", ")
        rest = f"{part}, {rest}" if rest else part
    label += "," if rest else ""
    cut = [shortened(line, width, size) for line in (label, rest, *lines) if line]
    axes.set_title("\n".join(cut), parse_math=False)


def legend(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], title: str | None = None, **layout: Any
) -> None:
    """A legend below the panels, in as many columns as its names leave room for; the figure grows by its height."""
    width = figure.get_figwidth() * POINTS
    longest = max(text_width(name, SMALL) for name in names) + 5 * SMALL  # the sample of the line, and air
    columns = min(len(names), max(1, int(width / longest)))
    rows = -(-len(names) // columns)
    columns = -(-len(names) // rows)  # rows of one length
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * (rows + (title is not None)))
    # Numbers first: matplotlib leaves out a label that begins with an underscore.
    drawn = figure.legend(
        handles,
        [str(number) for number in range(len(names))],
        loc="outside lower center",
        ncols=columns,
        title=None if title is None else shortened(title, width - 2 * SMALL, SMALL),
        **layout,
    )
    drawn.get_title().set_parse_math(False)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(shortened(name, width - 5 * SMALL, SMALL))
        text.set_parse_math(False)


def shortened(name: str, width: float, size: float, bold: bool = False) -> str:
    """A name as one line of at most `width` points: the end, where what differs often is, keeps two thirds.

    A letter that the font lacks becomes `�`, which it has: matplotlib would warn and draw an empty box.
    """
    known = _letters()
    name = "".join(letter if ord(letter) in known else "\N{REPLACEMENT CHARACTER}" for letter in " ".join(name.split()))
    if text_width(name, size, bold) <= width:
        return name
    for kept in range(len(name) - 1, 1, -1):
        head = kept // 3
        shorter = f"{name[:head].rstrip()}…{name[head - kept :].lstrip()}"
        if text_width(shorter, size, bold) <= width:
            return shorter
    return "…"


def text_width(text: str, size: float, bold: bool = False) -> float:
    """In points."""
    font = FontProperties(family=STYLE["font.family"], size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=STYLE["font.family"]))).get_charmap())
