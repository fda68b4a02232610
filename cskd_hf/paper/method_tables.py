"""Tables without published values: one for each image set, with a method a row and its metrics side by side."""

from __future__ import annotations

from collections.abc import Sequence

from cskd_hf.paper.cells import Cell, Grid, chosen_epoch
from cskd_hf.paper.text import aligned, name_of, number

_HEADS = {
    "top1_error": "top-1 error",
    "top5_error": "top-5 error",
    "nll": "NLL",
    "ece": "ECE",
    "ece_scaled": "ECE, fitted T",
    "brier": "Brier",
    "aurc": "AURC",
    "aurc_logit_norm": "AURC, logit norm",
    "recall_at_1": "Recall@1",
}
_LEGEND = [
    "Test split, {}: mean ± sample standard deviation (n − 1) over n seeds. Error, ECE (20 bins), AURC and",
    "Recall@1 in percent, NLL in nats, Brier from 0 to 2. Compute: forward and backward passes of one image in a",
    "training; a forward alone counts 1/3, and a teacher's own training is left out. Bold: the best in its column,",
    "ahead of the second best by more than their joint spread, √(std² + std²), which needs n ≥ 2 on both sides.",
]


def method_tables(grids: Sequence[Grid]) -> list[str]:
    """Lines of Markdown: how to read the tables, then for each image set its tables at equal epochs and compute."""
    lines = [_LEGEND[0].format(chosen_epoch(grids)), *_LEGEND[1:]]
    for column, (dataset, model) in enumerate(grids[0].block.columns):
        for budget in dict.fromkeys(grid.block.budget for grid in grids):
            alike = [grid for grid in grids if grid.block.budget == budget]
            equal = "epochs" if budget is None else "training compute"
            lines += ["", f"### {name_of(dataset)}, {name_of(model)}: equal {equal}", ""]
            lines += aligned(_rows(alike, column))
    return lines


def _rows(grids: Sequence[Grid], column: int) -> list[list[str]]:
    filled = [grid for grid in grids if any(row[column].values for row in grid.cells)] or grids[:1]
    rows = [["method", "n", "epochs", "compute", *(_HEADS[grid.block.metric] for grid in filled)]]
    for cells in zip(*([row[column] for row in grid.cells] for grid in filled), strict=True):
        n = max(len(cell.values) for cell in cells)
        epochs, compute = "–", "–"
        if (training := cells[0].training) is not None:
            epochs, compute = str(training.epochs), _thousands(training.compute)
        metrics = [_number(cell, grid.block.metric, n) for cell, grid in zip(cells, filled, strict=True)]
        rows.append([f"`{cells[0].method}`", str(n), epochs, compute, *metrics])
    return rows


def _thousands(count: float) -> str:
    """582 k; 0.27 k of a test."""
    return f"{count / 1000:,.0f} k" if count >= 10_000 else f"{count / 1000:.2g} k"


def _number(cell: Cell, metric: str, n: int) -> str:
    decimals = 3 if metric.removesuffix("_scaled") in ("nll", "brier") else 2
    text = number(cell.ours, count=0 < len(cell.values) < n, decimals=decimals)
    return f"**{text}**" if cell.best else text
