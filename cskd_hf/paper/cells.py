"""Numbers of finished runs → the cells of a table, each beside the paper's.

A cell is the mean over seeds of the last epoch's metric and the sample standard deviation (n − 1). Two means differ by
more than their joint spread where |a − b| > √(std_a² + std_b²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cskd_hf.paper.blocks import Block, Figure
from cskd_hf.paper.experiments import Run, RunKey
from cskd_hf.paper.find import Found

HIGHER_IS_BETTER = ("recall_at_1",)


def joint_spread(a: Figure, b: Figure) -> float | None:
    """√(std_a² + std_b²); None where one of the two has no spread."""
    return None if a.std is None or b.std is None else math.hypot(a.std, b.std)


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        values: seed → the metric of its finished run.
        missing: seed → why there is no value.
        best: of its column, and the second best is farther away than the joint spread of the two.
    """

    method: str
    dataset: str
    model: str
    values: Mapping[int, float]
    missing: Mapping[int, str]
    paper: Figure | None
    best: bool = False

    @property
    def ours(self) -> Figure | None:
        return Figure.of(list(self.values.values())) if self.values else None

    @property
    def gap(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper.mean

    @property
    def joint_spread(self) -> float | None:
        return None if self.ours is None or self.paper is None else joint_spread(self.ours, self.paper)

    @property
    def within_joint_spread(self) -> bool | None:
        """Whether ours is no farther from the paper's than the two spreads explain."""
        return None if self.gap is None or self.joint_spread is None else abs(self.gap) <= self.joint_spread


@dataclass(frozen=True)
class Grid:
    """A block of a table, filled.

    Attributes:
        cells: a row for each method of the block, a cell for each column.
    """

    block: Block
    cells: tuple[tuple[Cell, ...], ...]

    def flat(self) -> list[Cell]:
        return [cell for row in self.cells for cell in row]


def fill(block: Block, runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]) -> Grid:
    """The cells of a block; their seeds are those of `runs`."""
    rows = [[_cell(block, method, column, runs, found) for column in block.columns] for method in block.methods]
    columns = [_mark_best(list(column), block.metric in HIGHER_IS_BETTER) for column in zip(*rows, strict=True)]
    return Grid(block, tuple(zip(*columns, strict=True)))


def fill_all(blocks: Sequence[Block], runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]) -> list[Grid]:
    """Every block, and after a block of ECE one with the fitted temperature, where runs have fitted any."""
    grids = []
    for block in blocks:
        grids.append(fill(block, runs, found))
        if block.metric == "ece":
            scaled = fill(replace(block, metric="ece_scaled", paper={}), runs, found)
            if any(cell.values for cell in scaled.flat()):
                grids.append(scaled)
    return grids


def _cell(
    block: Block, method: str, column: tuple[str, str], runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]
) -> Cell:
    dataset, model = column
    values, missing = {}, {}
    for key, run in runs.items():
        if (key.dataset, key.model, key.method) != (dataset, model, method):
            continue
        summary = found[key].summary
        if summary is None:
            missing[key.seed] = found[key].describe(run)
            continue
        value = summary.metric(block.metric)
        if value is None:
            missing[key.seed] = f"finished without {block.metric}"
        else:
            values[key.seed] = value
    paper = None
    if (method, dataset, model) in block.paper:
        mean, std = block.paper[method, dataset, model]
        paper = Figure(mean, std, 1 if std is None else 3)
    return Cell(method, dataset, model, values, missing, paper)


def _mark_best(column: list[Cell], higher_is_better: bool) -> list[Cell]:
    """Mark the best cell of a column, if the second best is farther away than the joint spread of the two."""
    ranked = sorted(
        ((cell.ours.mean, number, cell.ours) for number, cell in enumerate(column) if cell.ours is not None),
        key=lambda entry: -entry[0] if higher_is_better else entry[0],
    )
    if len(ranked) > 1:
        (_, number, first), (_, _, second) = ranked[:2]
        spread = joint_spread(first, second)
        if spread is not None and abs(first.mean - second.mean) > spread:
            column[number] = replace(column[number], best=True)
    return column


def batch_notes(runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]) -> list[str]:
    """A line for each global batch that the recipe as shipped does not have: more processes make another experiment."""
    trained: dict[str, list[str]] = {}
    for key, run in runs.items():
        recipe, summary = found[key].recipe, found[key].summary
        if recipe is None or summary is None:
            continue
        per_process = recipe.data.batch_size * recipe.run.gradient_accumulation_steps
        batch = per_process * summary.throughput.num_processes
        if batch != run.shipped_batch:
            told = f"trained with {batch} images an update, where the recipe as shipped has {run.shipped_batch}"
            trained.setdefault(told, []).append(run.folder.name)
    return [f"{told}: {', '.join(names)}" for told, names in trained.items()]
