"""A filled table as Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from cskd_hf.paper.cells import HIGHER_IS_BETTER, Cell, Grid, chosen_epoch
from cskd_hf.paper.method_tables import method_tables
from cskd_hf.paper.text import aligned, name_of, number


def markdown(grids: Sequence[Grid], overrides: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """One table: its grids, the gap to each published value, the missing cells."""
    block = grids[0].block
    title = f"Table {block.table.removeprefix('table')}: " if block.table.startswith("table") else ""
    lines = [f"## {title}{block.caption}", ""]
    if overrides:
        lines += [f"Overrides: `{' '.join(overrides)}`", ""]
    published = any(grid.block.paper for grid in grids)
    lines += _paper_grids(grids) if published else method_tables(grids)
    against = [_against(grid, cell) for grid in grids for cell in grid.flat() if cell.gap is not None]
    if against:
        header = ["metric", "method", "images", "network", "ours", "paper", "gap", "joint spread", "within it"]
        lines += ["", "### Against the paper", "", *aligned([header, *against])]
    missing = _missing(cell for grid in grids for cell in grid.flat())
    if missing:
        lines += ["", "### Missing", "", *(f"- {line}" for line in missing)]
    if notes:
        lines += ["", "### Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _paper_grids(grids: Sequence[Grid]) -> list[str]:
    lines = _legend(grids)
    for grid in grids:
        common, better = in_common(grid), "higher" if grid.block.metric in HIGHER_IS_BETTER else "lower"
        heading = f"{f'{name_of(common)}: ' if common else ''}{name_of(grid.block.metric)}, {better} is better"
        lines += ["", f"### {heading}", "", *aligned(_grid_rows(grid))]
    return lines


def _legend(grids: Sequence[Grid]) -> list[str]:
    sizes = sorted({cell.paper.n for grid in grids for cell in grid.flat() if cell.paper is not None})
    paper = f" Below each method the paper's values, n = {', '.join(map(str, sizes))}." if sizes else ""
    return [
        f"Percent, {chosen_epoch(grids)}: mean ± sample standard deviation (n − 1) over (n) seeds.{paper}",
        "Bold: the best of ours in its column, ahead of our second best by more than their joint spread,",
        "√(std² + std²), which needs n ≥ 2 on both sides.",
    ]


def in_common(grid: Grid) -> str | None:
    """The network that all columns share, else the dataset, else None."""
    datasets, models = ({column[part] for column in grid.block.columns} for part in (0, 1))
    return next((names.pop() for names in (models, datasets) if len(names) == 1), None)


def column_names(grid: Grid) -> list[str]:
    """Dataset and network of each column, without the one that all columns share."""
    common = in_common(grid)
    return [", ".join(name_of(word) for word in column if word != common) for column in grid.block.columns]


def _grid_rows(grid: Grid) -> list[list[str]]:
    rows = [["method", *column_names(grid)]]
    for row in grid.cells:
        cells = [f"**{number(cell.ours, count=True)}**" if cell.best else number(cell.ours, count=True) for cell in row]
        rows.append([f"`{row[0].method}`", *cells])
        if any(cell.paper is not None for cell in row):
            rows.append(["– paper", *(number(cell.paper) for cell in row)])
    return rows


def _against(grid: Grid, cell: Cell) -> list[str]:
    if cell.joint_spread is not None:
        verdict = [f"{cell.joint_spread:.2f}", "yes" if cell.within_joint_spread else "no"]
    else:
        verdict = ["–", "our n = 1 has no spread" if len(cell.values) == 1 else "the paper gives no spread"]
    words = [name_of(grid.block.metric), f"`{cell.method}`", name_of(cell.dataset), name_of(cell.model)]
    assert cell.gap is not None
    gap = f"{round(cell.gap, 2) + 0.0:+.2f}"  # no -0.00
    return [*words, number(cell.ours, count=True), number(cell.paper), gap, *verdict]


def _missing(cells: Iterable[Cell]) -> list[str]:
    """A line for each dataset, network, reason and set of seeds, listing the methods that lack them."""
    seeds_of: dict[tuple[str, str, str], dict[int, None]] = {}  # grids share runs
    for cell in cells:
        for seed, reason in cell.missing.items():
            seeds_of.setdefault((f"{cell.dataset}_{cell.model}", reason, cell.method), {})[seed] = None
    methods_of: dict[str, list[str]] = {}
    for (recipe, reason, method), seeds in seeds_of.items():
        line = f"{recipe}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}, {reason}"
        methods_of.setdefault(line, []).append(f"`{method}`")
    return [f"{line}: {', '.join(methods)}" for line, methods in methods_of.items()]


def as_json(grids: Sequence[Grid], overrides: Sequence[str] = (), notes: Sequence[str] = ()) -> str:
    """Every cell with its values by seed, unrounded; null where unknown."""
    block = grids[0].block
    content = {
        "table": block.table,
        "caption": block.caption,
        "std": "sample, n - 1",
        "joint_spread": "sqrt(std ** 2 + paper_std ** 2)",
        "overrides": list(overrides),
        "notes": list(notes),
        "cells": [{"metric": grid.block.metric, **_json_cell(cell)} for grid in grids for cell in grid.flat()],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json_cell(cell: Cell) -> dict[str, Any]:
    ours, paper = cell.ours, cell.paper
    return {
        "method": cell.method,
        "dataset": cell.dataset,
        "model": cell.model,
        "epochs": None if cell.training is None else cell.training.epochs,
        "compute": None if cell.training is None else cell.training.compute,
        "values": {str(seed): value for seed, value in cell.values.items()},
        "missing": {str(seed): reason for seed, reason in cell.missing.items()},
        "n": len(cell.values),
        "mean": None if ours is None else ours.mean,
        "std": None if ours is None else ours.std,
        "paper_mean": None if paper is None else paper.mean,
        "paper_std": None if paper is None else paper.std,
        "gap": cell.gap,
        "joint_spread": cell.joint_spread,
        "within_joint_spread": cell.within_joint_spread,
        "best": cell.best,
    }
