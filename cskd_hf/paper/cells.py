"""Metrics of finished runs → the cells of a table, next to the paper's.

A cell is the mean over seeds of a metric, with the sample standard deviation (n − 1): of the last epoch, unless the
recipe selects another. Two means differ when |a − b| exceeds their joint spread, √(std_a² + std_b²).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from cskd_hf.paper.blocks import Block, MeanStd, RunKey
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import RunState
from cskd_hf.runs.environment import CHANGES

HIGHER_IS_BETTER = ("recall_at_1",)
_IF_MEASURED = ("ece_scaled",)  # runs without a temperature lack it


def joint_spread(a: MeanStd | None, b: MeanStd | None) -> float | None:
    """√(std_a² + std_b²); None where either is unknown."""
    if a is None or b is None or a.std is None or b.std is None:
        return None
    return math.hypot(a.std, b.std)


class Training(NamedTuple):
    """What a run costs, `compute` is `Run.compute`, and the epoch it ends with, in words."""

    epochs: int
    compute: float
    chosen_epoch: str


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        values: seed → the metric of its finished run.
        missing: seed → why there is no value.
        training: of each seed; None without runs.
        best: of its column, ahead of the second best by more than their joint spread.
    """

    method: str
    dataset: str
    model: str
    values: Mapping[int, float]
    missing: Mapping[int, str]
    paper: MeanStd | None
    training: Training | None
    best: bool = False

    @property
    def ours(self) -> MeanStd | None:
        return MeanStd.of(list(self.values.values())) if self.values else None

    @property
    def gap(self) -> float | None:
        """Ours minus the paper's."""
        return None if self.ours is None or self.paper is None else self.ours.mean - self.paper.mean

    @property
    def joint_spread(self) -> float | None:
        return joint_spread(self.ours, self.paper)

    @property
    def within_joint_spread(self) -> bool | None:
        """Whether the two spreads explain the gap."""
        return None if self.gap is None or self.joint_spread is None else abs(self.gap) <= self.joint_spread


@dataclass(frozen=True)
class Grid:
    """A filled block.

    Attributes:
        cells: one row per method of the block, one cell per column.
    """

    block: Block
    cells: tuple[tuple[Cell, ...], ...]

    def flat(self) -> list[Cell]:
        return [cell for row in self.cells for cell in row]


def chosen_epoch(grids: Sequence[Grid]) -> str:
    """The epoch whose weights the numbers are of, for a caption."""
    trainings = [cell.training for grid in grids for cell in grid.flat() if cell.training is not None]
    return " or ".join(sorted({training.chosen_epoch for training in trainings})) or "last epoch"


def fill_all(blocks: Sequence[Block], runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]) -> list[Grid]:
    """Every block; after one of ECE follows ECE at the fitted temperature. Of `_IF_MEASURED` only those with values."""
    grids = []
    for block in blocks:
        grids.append(fill(block, runs, states))
        if block.metric == "ece":
            grids.append(fill(replace(block, metric="ece_scaled", paper={}), runs, states))
    return [grid for grid in grids if grid.block.metric not in _IF_MEASURED or any(cell.values for cell in grid.flat())]


def fill(block: Block, runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]) -> Grid:
    """The cells of a block; their seeds are those of `runs`."""
    rows = [[_cell(block, method, column, runs, states) for column in block.columns] for method in block.methods]
    columns = [_mark_best(column, block.metric in HIGHER_IS_BETTER) for column in zip(*rows, strict=True)]
    return Grid(block, tuple(zip(*columns, strict=True)))


def _cell(
    block: Block, method: str, column: tuple[str, str], runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]
) -> Cell:
    values, missing, training = {}, {}, None
    for seed in dict.fromkeys(key.seed for key in runs):
        key = block.key(method, column, seed)
        if key not in runs:
            continue
        run, summary = runs[key], states[key].summary
        if training is None or summary is not None:
            recipe, images = run.expected, run.size.train if summary is None else summary.dataset.images["train"]
            training = Training(recipe.scheduler.total_epochs, run.compute(images), recipe.run.chosen_epoch)
        epochs = "" if key.epochs is None else f"{key.epochs} epochs, "
        if summary is None:
            missing[seed] = epochs + states[key].describe(run)
        elif (value := summary.metric(block.metric)) is None:
            missing[seed] = f"{epochs}finished without {block.metric}"
        else:
            values[seed] = value
    dataset, model = column
    return Cell(method, dataset, model, values, missing, block.paper.get((method, dataset, model)), training)


def _mark_best(column: Sequence[Cell], higher_is_better: bool) -> list[Cell]:
    ranked = sorted(
        ((cell.ours, row) for row, cell in enumerate(column) if cell.ours is not None),
        key=lambda entry: entry[0].mean,
        reverse=higher_is_better,
    )
    if len(ranked) < 2:
        return list(column)
    (first, best), (second, _) = ranked[:2]
    spread = joint_spread(first, second)
    ahead = spread is not None and abs(first.mean - second.mean) > spread
    return [replace(cell, best=ahead and row == best) for row, cell in enumerate(column)]


def data_notes(runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]) -> list[str]:
    """A line for each way in which finished runs are not what the table's recipe says, or not alike.

    A folder given by `--data` may be another set, unreadable images may be left out, more processes make another
    experiment, and so do updates before a forced resume with other settings or images. A run that stopped early cost
    less than its cell says. The launcher may choose the precision.
    """
    noted: dict[str, list[str]] = {}
    finished = [
        (key, run, recipe, summary)
        for key, run in runs.items()
        if (recipe := states[key].recipe) is not None and (summary := states[key].summary) is not None
    ]
    # Chosen by the launcher, not by a recipe.
    precisions = {recipe.run.mixed_precision for _, run, recipe, _ in finished if not run.expected.run.mixed_precision}
    for key, run, recipe, summary in finished:
        batch = recipe.data.batch_size * recipe.run.gradient_accumulation_steps * summary.throughput.num_processes
        images, tested = summary.dataset.images["train"], summary.tested_images
        notes = [note for note in summary.notes if note.startswith(CHANGES)]
        if batch != run.shipped_batch:
            notes.append(f"trained with {batch} images per update; the shipped recipe has {run.shipped_batch}")
        if images != run.size.train:
            notes.append(f"trained on {images:,} images; {key.dataset} has {run.size.train:,}")
        if tested != run.size.test:
            notes.append(f"tested on {tested:,} images; {key.dataset} has {run.size.test:,}")
        if summary.epochs_trained != str(summary.epochs):
            notes.append(f"stopped early, after {summary.epochs_trained} epochs, at a lower cost than the table's")
        if len(precisions) > 1 and not run.expected.run.mixed_precision:
            precision = recipe.run.mixed_precision
            notes.append(f"trained in {'float32' if precision == 'no' else precision}, others of the table are not")
        for note in notes:
            noted.setdefault(note, []).append(run.folder.name)
    return [f"{note}: {', '.join(names)}" for note, names in noted.items()]
