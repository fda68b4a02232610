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
    same_n, single = len(counts) <= 1, counts == [1]
    common = in_common(grid)
    subject = ", ".join(name_of(word) for word in (common, grid.block.metric) if word is not None)
    budget = None if grid.block.budget is None else "equal training compute"
    label = "-".join(word for word in (grid.block.table, common, grid.block.metric, budget) if word is not None)
    caption = f"{escape(subject)} in percent, {chosen_epoch([grid])}, "
    caption += "" if single else r"mean $\pm$ sample standard deviation ($n-1$) "
    caption += f"over {f'$n={counts[0]}$' if counts and same_n else '$n$'} seed{'' if single else 's'}"
    caption += "" if same_n else ", $n$ in parentheses"
    caption += "; the paper's values in italics" if any(cell.paper for cell in grid.flat()) else ""
    caption += "" if budget is None else f"; {budget}"
    caption += f". Overrides: {escape(' '.join(overrides))}." if overrides else "."
    rows = [["Method", *map(escape, column_names(grid))]]
    for row in grid.cells:
        cells = [_latex_number(cell.ours, not same_n, cell.best) for cell in row]
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
