"""A filled table as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_hf.evaluation.formats import escape, latex_table
from cskd_hf.paper.blocks import MeanStd, method_title
from cskd_hf.paper.cells import Grid, chosen_epoch
from cskd_hf.paper.markdown import column_names, in_common
from cskd_hf.paper.text import name_of


def latex(grids: Sequence[Grid], overrides: Sequence[str] = ()) -> str:
    r"""A booktabs `table` for each grid, to `\input`; needs `\usepackage{booktabs}`."""
    return "\n".join(_latex_table(grid, overrides) for grid in grids)


def _latex_table(grid: Grid, overrides: Sequence[str]) -> str:
    counts = sorted({cell.ours.n for cell in grid.flat() if cell.ours is not None})
    common, metric = in_common(grid), grid.block.metric
    budget = None if grid.block.budget is None else "equal training compute"
    label = "-".join(word for word in (grid.block.table, common, metric, budget) if word is not None)
    subject = ", ".join(name_of(word) for word in (common, metric) if word is not None)
    n = f"$n={counts[0]}$" if len(counts) == 1 else "$n$"
    mean = f"over {n} seed" if counts == [1] else rf"mean $\pm$ sample standard deviation ($n-1$) over {n} seeds"
    caption = f"{escape(subject)} in percent, {chosen_epoch([grid])}, {mean}"
    caption += ", $n$ in parentheses" if len(counts) > 1 else ""
    caption += "; the paper's values in italics" if any(cell.paper for cell in grid.flat()) else ""
    caption += "" if budget is None else f"; {budget}"
    caption += f". Overrides: {escape(' '.join(overrides))}." if overrides else "."
    rows = [["Method", *map(escape, column_names(grid))]]
    for row in grid.cells:
        cells = [_latex_number(cell.ours, len(counts) > 1, cell.best) for cell in row]
        rows.append([escape(method_title(row[0].method)), *cells])
        if any(cell.paper is not None for cell in row):
            published = [f"\\textit{{{_latex_number(cell.paper, False)}}}" for cell in row]
            rows.append([r"\quad\textit{paper}", *published])
    return latex_table(rows, caption, f"tab:{label.replace('_', '-').replace(' ', '-')}", align="c")


def _latex_number(value: MeanStd | None, count: bool, bold: bool = False) -> str:
    if value is None:
        return "--"
    mean = f"\\textbf{{{value.mean:.2f}}}" if bold else f"{value.mean:.2f}"
    spread = "" if value.std is None else f" $\\pm$ {value.std:.2f}"
    return mean + spread + (f" ({value.n})" if count else "")
