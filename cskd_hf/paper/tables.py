"""Print the plan, the commands and the tables; draw the figure of ours."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import Block, RunKey
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import RunState, inspect_runs
from cskd_hf.paper.launch import command_of


def print_commands(runs: Mapping[RunKey, Run], prefix: Sequence[str]) -> int:
    """Print a command for each missing run; returns the exit status."""
    states = inspect_runs(runs)
    missing = {key: run for key, run in runs.items() if states[key].trainable}
    for run in missing.values():
        print(shlex.join(command_of(run, prefix)))
    teachers = {run.teacher for run in missing.values()}
    lines = [str(number) for number, key in enumerate(missing, start=1) if key in teachers]
    if lines:
        print(f"note: lines {', '.join(lines)} train teachers; they must finish before the others", file=sys.stderr)
    return report_bad_folders(runs, states)


def print_plan(runs: Mapping[RunKey, Run], root: Path) -> int:
    """Print the missing runs with their device-hours; returns the exit status."""
    from cskd_hf.paper.plan import device_hours, estimate

    states = inspect_runs(runs)
    missing = [key for key in runs if states[key].trainable]
    rates = estimate(runs, missing, root)
    hours = {key: device_hours(runs[key], states[key], rates[key]) for key in missing}
    width = max((len(runs[key].folder.name) for key in missing), default=0)
    if missing:
        print(f"{'device-hours':>12}  {'run':<{width}}  state; estimated from")
    for key in missing:
        state = f"{states[key].describe(runs[key])}; {rates[key].source}"
        print(f"{hours[key]:12.2f}  {runs[key].folder.name:<{width}}  {state}")
    finished = sum(state.status == "finished" for state in states.values())
    total = sum(hours.values())
    print(f"{total:12.2f}  device-hours (processes × hours) in {len(missing)} runs; {finished} of {len(runs)} finished")
    return report_bad_folders(runs, states)


def report_bad_folders(runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState]) -> int:
    """Print an error for each folder that is neither finished nor trainable; returns 2 if there is one, else 0."""
    bad = [key for key in runs if not states[key].trainable and states[key].status != "finished"]
    for key in bad:
        hint = "; --data NAME=FOLDER sets a dataset's folder" if "data.dataset: " in states[key].problem else ""
        print(f"error: {runs[key].folder}: skipped: {states[key].describe(runs[key])}{hint}", file=sys.stderr)
    return 2 if bad else 0


def show(
    blocks: Sequence[Block],
    runs: Mapping[RunKey, Run],
    states: Mapping[RunKey, RunState],
    overrides: Sequence[str],
    output: Path | None,
) -> None:
    """Print each table as Markdown, and write it to `output` as Markdown, LaTeX and JSON.

    Raises:
        UserError: `output` cannot be written.
    """
    from cskd_hf.paper.cells import data_notes, fill_all
    from cskd_hf.paper.latex import latex
    from cskd_hf.paper.markdown import as_json, markdown

    for table in dict.fromkeys(block.table for block in blocks):
        grids = fill_all([block for block in blocks if block.table == table], runs, states)
        cells = {(cell.dataset, cell.model, cell.method) for grid in grids for cell in grid.flat()}
        notes = data_notes({key: run for key, run in runs.items() if key[:3] in cells}, states)
        text = markdown(grids, overrides, notes)
        print(text)
        if output is None:
            continue
        formats = {".md": text, ".tex": latex(grids, overrides), ".json": as_json(grids, overrides, notes)}
        try:
            output.mkdir(parents=True, exist_ok=True)
            for suffix, content in formats.items():
                path = output / f"{table}{suffix}"
                path.write_text(content, encoding="utf-8")
                print(f"wrote {path}", file=sys.stderr)
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}") from None


def draw(blocks: Sequence[Block], runs: Mapping[RunKey, Run], states: Mapping[RunKey, RunState], figure: Path) -> None:
    """Draw the errors of `evidence` against the compute of its runs.

    Raises:
        UserError: no run has finished, or `figure` cannot be written.
    """
    from cskd_hf.paper.cells import fill
    from cskd_hf.paper.cost_plot import error_against_compute

    errors = [block for block in blocks if block.table == "evidence" and block.metric == "top1_error"]
    drawing = error_against_compute([fill(block, runs, states) for block in errors])
    if drawing is None:
        raise UserError("--figure: no run has finished; train them with --run")
    try:
        figure.parent.mkdir(parents=True, exist_ok=True)
        figure.write_bytes(drawing.files()[figure.suffix.removeprefix(".")])
    except OSError as error:
        raise UserError(f"--figure: {figure} cannot be written: {error}") from None
    print(f"wrote {figure}", file=sys.stderr)
