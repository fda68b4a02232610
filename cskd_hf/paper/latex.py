"""A filled table as LaTeX to print."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_hf.paper.blocks import Figure
from cskd_hf.paper.cells import Grid
from cskd_hf.paper.markdown import column_names, in_common, name_of

METHODS = {
    "cross_entropy": "Cross-entropy",
    "adacos": "AdaCos",
    "virtual_softmax": "Virtual softmax",
    "max_entropy": "Maximum entropy",
    "label_smoothing": "Label smoothing",
    "ddgsd": "DDGSD",
    "byot": "BYOT",
    "mixup": "Mixup",
    "kd": "KD",
    "cskd": "CS-KD",
    "cskd_e": "CS-KD-E",
    "mixup+cskd": "Mixup + CS-KD",
    "kd+cskd": "KD + CS-KD",
}
_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


def latex(grids: Sequence[Grid], overrides: Sequence[str] = ()) -> str:
    r"""A booktabs `table` for each grid, to `\input`; needs `\usepackage{booktabs}`."""
    return "\n".join(_latex_table(grid, overrides) for grid in grids)


def _latex_table(grid: Grid, overrides: Sequence[str]) -> str:
    counts = sorted({cell.ours.n for cell in grid.flat() if cell.ours is not None})
    alike = len(counts) <= 1
    over = f"$n={counts[0]}$" if counts and alike else "$n$"
    spread = "" if counts == [1] else r"mean $\pm$ sample standard deviation ($n-1$) "
    common = in_common(grid)
    subject = ", ".join(name_of(word) for word in (common, grid.block.metric) if word is not None)
    label = "-".join(word for word in (grid.block.table, common, grid.block.metric) if word is not None)
    caption = f"{_escape(subject)} in percent, last epoch, {spread}over {over} seed{'' if counts == [1] else 's'}"
    caption += "" if alike else ", $n$ in parentheses"
    caption += r"; in italics the paper's figures" if any(cell.paper for cell in grid.flat()) else ""
    caption += f". Overrides: {_escape(' '.join(overrides))}." if overrides else "."
    lines = [
        r"\begin{table}",
        r"  \centering",
        f"  \\caption{{{caption}}}",
        f"  \\label{{tab:{label.replace('_', '-')}}}",
        f"  \\begin{{tabular}}{{l{'c' * len(grid.block.columns)}}}",
        r"    \toprule",
        "    " + " & ".join(["Method", *map(_escape, column_names(grid))]) + r" \\",
        r"    \midrule",
    ]
    for row in grid.cells:
        name = METHODS.get(row[0].method, row[0].method)
        lines.append(_latex_row(_escape(name), [_latex_number(cell.ours, not alike, cell.best) for cell in row]))
        if any(cell.paper is not None for cell in row):
            figures = [_latex_number(cell.paper, False) for cell in row]
            lines.append(_latex_row(r"\quad\textit{paper}", [f"\\textit{{{text}}}" for text in figures]))
    return "\n".join([*lines, r"    \bottomrule", r"  \end{tabular}", r"\end{table}"]) + "\n"


def _latex_row(name: str, cells: Sequence[str]) -> str:
    return "    " + " & ".join([name, *cells]) + r" \\"


def _latex_number(figure: Figure | None, count: bool, bold: bool = False) -> str:
    if figure is None:
        return "--"
    mean = f"\\textbf{{{figure.mean:.2f}}}" if bold else f"{figure.mean:.2f}"
    spread = "" if figure.std is None else f" $\\pm$ {figure.std:.2f}"
    return mean + spread + (f" ({figure.n})" if count else "")


def _escape(text: str) -> str:
    return text.translate(_SPECIAL)
