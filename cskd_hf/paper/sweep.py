"""A grid of settings, compared on hold-out images: plan, train, resume, tabulate.

A value with several comma-separated parts spans a dimension of the grid; commas within brackets or quotes do not count.
The test split plays no part in the table, so that it can still judge the setting that is chosen.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import MeanStd, RunKey
from cskd_hf.paper.cells import joint_spread
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import RunState
from cskd_hf.paper.text import aligned, number
from cskd_hf.recipe.recipe import load_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.recipe.suggest import flow
from cskd_hf.runs.environment import CHANGES
from cskd_hf.runs.folder import read_metrics

METRICS = {"top1_error": "Top-1 error, %", "nll": "NLL, nats", "ece": "ECE, %"}
_MAX_NAME = 150  # characters of a folder's name; file systems allow 255


def grid_of(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The overrides with one value, and key → values of the others.

        >>> grid_of(["optimizer.lr=0.1,0.2", "transform.input_size=[3,32,32]"])
        (['transform.input_size=[3,32,32]'], {'optimizer.lr': ['0.1', '0.2']})

    Raises:
        UserError: a value is empty or occurs twice, or a key has values in two overrides.
    """
    fixed, grid = [], {}
    keys = [override.partition("=")[0].strip() for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        values = [value.strip() for value in _split(override.partition("=")[2])]
        if keys.count(key) > 1:
            raise UserError(f"{override}: {key} is given twice; write {key}=A,B,… once")
        if len(values) == 1:
            fixed.append(override)
            continue
        if "" in values or len(set(values)) < len(values):
            raise UserError(f"{override}: a value is empty or occurs twice; write {key}=A,B,…")
        grid[key] = values
    return fixed, grid


def _split(text: str) -> list[str]:
    """The parts between the commas outside of brackets and quotes."""
    parts = re.findall(r"""(?:^|,)((?:[^,'"\[\]{}]|'[^']*'|"[^"]*"|\[[^\]]*\]|\{[^}]*\})*)""", text)
    return parts if ",".join(parts) == text else [text]  # an open bracket is reported with the recipe


def sweep_runs(recipe: str, overrides: Sequence[str], seeds: Sequence[int], root: Path) -> dict[RunKey, Run]:
    """A run for every point of the grid and seed: the first seed of every point, then the second.

    Args:
        recipe: path, or the name of a shipped recipe.
        overrides: `section.key=value`, or `section.key=A,B,…`.

    Raises:
        UserError: an override is wrong at some point of the grid, nothing varies, two points train the same, or the
            recipe has no hold-out set.
    """
    fixed, grid = grid_of(overrides)
    if not grid:
        raise UserError("sweep: nothing varies; write several values, such as optimizer.lr=0.05,0.1")
    shipped, runs, points = load_recipe(recipe), {}, dict[str, str]()
    for seed, values in itertools.product(seeds, itertools.product(*grid.values())):
        point = [f"{key}={value}" for key, value in zip(grid, values, strict=True)]
        name = re.sub(r"[^\w.,=+-]+", "_", ",".join(re.sub(r"^\w+\.", "", setting) for setting in point))
        folder = root / f"{Path(recipe).stem}-{name}-seed{seed}"
        settings = (*fixed, *point, f"run.seed={seed}", f"run.output_dir={flow(folder.as_posix())}")
        expected = resolve(load_recipe(recipe, settings))
        if not expected.data.holdout:
            raise UserError("data.holdout: none, and a sweep compares on hold-out images; write data.holdout=0.1")
        key = RunKey(expected.data.dataset, expected.model.model_name, " ".join(point), seed)
        same = points.setdefault(recipe_hash(expected), key.method)
        if same != key.method:
            raise UserError(f"sweep: {same} and {key.method} train the same; leave one out")
        batch = shipped.data.batch_size * shipped.run.gradient_accumulation_steps
        runs[key] = Run(key, recipe, settings, folder, expected, batch, teacher=None)
    folders = {run.folder for run in runs.values()}
    if len(folders) < len(runs) or any(len(folder.name) > _MAX_NAME for folder in folders):
        raise UserError("sweep: the values make no distinct, short names of folders; sweep fewer or shorter ones")
    return runs


def table(runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState], metric: str) -> list[dict[str, Any]]:
    """A row per point of the grid, best mean of `metric` first; points without a finished run last."""
    points: dict[str, list[dict[str, float]]] = {}
    chosen = {key.method: run.expected.run.chosen_epoch for key, run in runs.items()}
    for key, run in runs.items():
        values = points.setdefault(key.method, [])
        if (summary := states[key].summary) is not None:
            line = next(line for line in read_metrics(run.folder) if line["epoch"] + 1 == summary.epoch)
            if "holdout/top1_error" in line:  # absent if half-precision logits overflowed
                values.append({name: line[f"holdout/{name}"] for name in METRICS})
    rows = [
        {
            "point": point,
            "chosen_epoch": chosen[point],
            "n": len(values),
            **{name: MeanStd.of([each[name] for each in values]) if values else None for name in METRICS},
        }
        for point, values in points.items()
    ]
    return sorted(rows, key=lambda row: (row[metric] is None, row[metric].mean if row[metric] else 0.0))


def notes(runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]) -> list[str]:
    """A line for each reason not to compare rows: other images, processes or precision, changes at a resume."""
    lines, facts = [], dict[str, dict[str, str]]()
    for key, run in runs.items():
        if (summary := states[key].summary) is not None and (recipe := states[key].recipe) is not None:
            lines += [f"{run.folder.name}: {note}" for note in summary.notes if note.startswith(CHANGES)]
            launched = run.expected.run.mixed_precision is None  # not a setting of the sweep
            for fact, value in (
                ("hold-out images", f"{summary.dataset.images['holdout']:,}"),
                ("numbers of processes", str(summary.throughput.num_processes)),
                ("mixed precision", str(recipe.run.mixed_precision if launched else None)),
            ):
                facts.setdefault(fact, {}).setdefault(value, key.method)
    for fact, values in facts.items():
        if len(values) > 1:
            each = ", ".join(f"{value} with `{point}`" for value, point in values.items())
            lines.append(f"rows of different {fact} are not comparable: {each}")
    return lines


def markdown(recipe: str, rows: Sequence[Mapping[str, Any]], metric: str, notes: Sequence[str] = ()) -> str:
    """The table and, if two points or more have finished, which of them the spread cannot tell from the best."""
    lines = [f"## Sweep of {recipe}", ""]
    chosen = sorted({row["chosen_epoch"] for row in rows})
    lines += [f"On hold-out images, {' or '.join(chosen)}; mean ± sample standard deviation over n seeds.", ""]
    if chosen != ["last epoch"]:
        lines += [
            "Hold-out values of an epoch chosen there are optimistic: do not compare them with those of a last epoch.",
            "",
        ]
    cells = [["setting", *METRICS.values(), "n"]]
    for row in rows:
        values = [number(row[name], decimals=3 if name == "nll" else 2) for name in METRICS]
        cells.append([f"`{row['point']}`", *values, str(row["n"])])
    lines += aligned(cells)
    finished = [row for row in rows if row["n"]]
    if len(finished) > 1:
        best, *others = finished
        spreads = [joint_spread(row[metric], best[metric]) for row in others]
        ties = [
            row["point"]
            for row, spread in zip(others, spreads, strict=True)
            if spread is not None and row[metric].mean - best[metric].mean <= spread
        ]
        lines += ["", f"Best by {METRICS[metric].partition(',')[0]}: `{best['point']}`."]
        if ties:
            lines += [f"Not behind it by more than the joint spread: {', '.join(f'`{point}`' for point in ties)}."]
        if None in spreads:
            lines += ["With n = 1 the spread is not known; add --seeds before you choose."]
    lines += [line for note in notes for line in ("", f"Note: {note}.")]
    return "\n".join(lines) + "\n"
