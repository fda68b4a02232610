"""Tables of text cells, the first row the header: for a terminal, Markdown and LaTeX. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

Cells = Sequence[Sequence[str]]

_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "–": "--",
        "−": "$-$",
        "<": "$<$",
        ">": "$>$",
        "|": "$|$",
    }
)


def count_images(images: int, skipped: int) -> str:
    """How many images were evaluated, and how many not.

    Example:
        >>> count_images(1000, 0), count_images(997, 3)
        ('1,000 images', '997 images, 3 unreadable skipped')
    """
    return f"{images:,} images" + (f", {skipped:,} unreadable skipped" if skipped else "")


def text_table(cells: Cells) -> str:
    """Aligned columns; all but the first and the last to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, values, widths[1:]), last]).rstrip()
        for name, *values, last in cells
    )


def number_table(cells: Cells) -> str:
    """Aligned columns; all but the first to the right."""
    return text_table([[*row, ""] for row in cells])


def markdown_table(cells: Cells) -> str:
    """A Markdown table; its columns are not aligned."""
    header, *body = cells
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *body))


def latex_table(cells: Cells, caption: str, label: str = "", align: str = "r") -> str:
    r"""A booktabs `table` to `\input`; needs `\usepackage{booktabs}`.

    Args:
        cells, caption: in LaTeX.
        label: of the table.
        align: of all columns but the first.
    """
    header, *body = (f"    {' & '.join(row)} \\\\" for row in cells)
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        *([f"  \\label{{{label}}}"] if label else []),
        f"  \\begin{{tabular}}{{l{align * (len(cells[0]) - 1)}}}",
        r"    \toprule",
        header,
        r"    \midrule",
        *body,
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text for LaTeX."""
    return text.translate(_SPECIAL)
