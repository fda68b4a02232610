"""Page layout of the paper's figures: two columns, text of 7 to 8 points, one panel per run.

Draw under `matplotlib.rc_context(PAPER_STYLE)`. Names are printed literally: shortened where they do not fit, never
parsed as formulas.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import matplotlib
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.textpath import text_to_path

from cskd_hf.report import names
from cskd_hf.report.figures import STYLE, render

# Inches: a paper's columns, and the page's height less a caption.
ONE_COLUMN_WIDTH = 3.3
TWO_COLUMNS_WIDTH = 6.9
PAGE_HEIGHT = 8.5
MAX_PANEL_HEIGHT = 3.6
LINE_HEIGHT = 0.15  # of a legend
POINTS = 72  # per inch

SMALL = 7.0  # points

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
        "pdf.fonttype": 42,  # TrueType: conferences reject matplotlib's default, Type 3
    }
)


class Drawing(NamedTuple):
    """A figure and its alternative text."""

    figure: Figure
    description: str

    def files(self) -> dict[str, bytes]:
        """File extension → content."""
        with matplotlib.rc_context(PAPER_STYLE):
            return {"pdf": render(self.figure, self.description, "pdf"), "png": render(self.figure, self.description)}


def grid_shape(num_panels: int, max_columns: int = 3) -> tuple[int, int]:
    """Rows and columns; four panels are two and two, not three and one."""
    columns = -(-num_panels // 2) if num_panels == max_columns + 1 else min(num_panels, max_columns)
    return -(-num_panels // columns), columns


def panels(
    num_panels: int, extra_height: float, max_columns: int = 3, xlabel: str = "", ylabel: str = ""
) -> tuple[Figure, list[Axes], float]:
    """Panels in rows of at most `max_columns`, square but for `extra_height` inches; outer ones have tick labels.

    Returns:
        The figure, its panels, and a panel's width in points, labels included.
    """
    rows, columns = grid_shape(num_panels, max_columns)
    width = ONE_COLUMN_WIDTH if num_panels == 1 < max_columns else TWO_COLUMNS_WIDTH / max_columns
    height = (min(width, MAX_PANEL_HEIGHT) + extra_height) * rows
    figure = Figure(figsize=(width * columns, height))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[num_panels:]:
        axes.remove()
    for number, axes in enumerate(grid[:num_panels]):
        left, bottom = number % columns == 0, number >= num_panels - columns
        axes.tick_params(labelleft=left, labelbottom=bottom)
        axes.set(xlabel=xlabel if bottom else "", ylabel=ylabel if left else "")
    return figure, grid[:num_panels], width * POINTS


def set_title(axes: Axes, width: float, label: str, *lines: str) -> None:
    """A run's label above its panel, on two lines if needed, and further lines; none wider than `width` points."""
    size = PAPER_STYLE["axes.titlesize"]
    label, rest = shortened(label, sys.maxsize, size), ""
    while text_width(label, size) > width and ", " in label:
        label, _, part = label.rpartition(", ")
        rest = f"{part}, {rest}" if rest else part
    label += "," if rest else ""
    fitted = [shortened(line, width, size) for line in (label, rest, *lines) if line]
    axes.set_title("\n".join(fitted), parse_math=False)


def legend(
    figure: Figure, handles: Sequence[Artist], names: Sequence[str], title: str = "", markerscale: float = 1.0
) -> None:
    """A legend below the panels, with as many columns as fit; the figure grows by its height."""
    width = figure.get_figwidth() * POINTS
    longest = max(text_width(name, SMALL) for name in names) + 5 * SMALL  # the line sample and padding
    columns = min(len(names), max(1, int(width / longest)))
    rows = -(-len(names) // columns)
    columns = -(-len(names) // rows)  # rows of equal length
    figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * (rows + bool(title)))
    # Numbers as placeholders: matplotlib omits a label that begins with an underscore.
    drawn = figure.legend(
        handles,
        list(map(str, range(len(names)))),
        loc="outside lower center",
        ncols=columns,
        title=shortened(title, width - 2 * SMALL, SMALL),
        markerscale=markerscale,
    )
    drawn.get_title().set_parse_math(False)
    for text, name in zip(drawn.get_texts(), names, strict=True):
        text.set_text(shortened(name, width - 5 * SMALL, SMALL))
        text.set_parse_math(False)


def shortened(name: str, width: float, size: float, bold: bool = False) -> str:
    """A name on one line of at most `width` points.

    A character missing from the font becomes `�`, which it has: matplotlib would warn and draw an empty box.
    """
    known = _characters()
    name = "".join(char if ord(char) in known else "\N{REPLACEMENT CHARACTER}" for char in " ".join(name.split()))
    return names.shortened(name, lambda shown: text_width(shown, size, bold) <= width)


def text_width(text: str, size: float, bold: bool = False) -> float:
    """In points."""
    font = FontProperties(family=STYLE["font.family"], size=size, weight="bold" if bold else "normal")
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=STYLE["font.family"]))).get_charmap())
