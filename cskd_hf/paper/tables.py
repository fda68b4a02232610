"""Print the plan, the commands and the tables of the paper."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import Block
from cskd_hf.paper.experiments import Run, RunKey
from cskd_hf.paper.find import Found, find_run
from cskd_hf.paper.launch import command_of


def print_commands(runs: Mapping[RunKey, Run], prefix: Sequence[str]) -> int:
    found = {key: find_run(run) for key, run in runs.items()}
    missing = {key: run for key, run in runs.items() if found[key].trainable}
    for run in missing.values():
        print(shlex.join(command_of(run, prefix)))
    teachers = {run.teacher for run in missing.values() if run.teacher in missing}
    if teachers:
        lines = [str(number) for number, key in enumerate(missing, start=1) if key in teachers]
        print(f"note: lines {', '.join(lines)} train teachers; let them finish before the rest", file=sys.stderr)
    return report_bad_folders(runs, found)


def print_plan(runs: Mapping[RunKey, Run], root: Path) -> int:
    from cskd_hf.paper.plan import device_hours, estimate

    found = {key: find_run(run) for key, run in runs.items()}
    missing = [key for key in runs if found[key].trainable]
    rates = estimate(runs, missing, root)
    hours = {key: device_hours(runs[key], found[key], rates[key]) for key in missing}
    width = max((len(runs[key].folder.name) for key in missing), default=0)
    if missing:
        print(f"{'device-hours':>12}  {'run':<{width}}  state; estimated from")
    for key in missing:
        told = f"{found[key].describe(runs[key])}; {rates[key].source}"
        print(f"{hours[key]:12.2f}  {runs[key].folder.name:<{width}}  {told}")
    finished = sum(each.status == "finished" for each in found.values())
    total = sum(hours.values())
    print(f"{total:12.2f}  device-hours (processes × hours) in {len(missing)} runs; {finished} of {len(runs)} finished")
    return report_bad_folders(runs, found)


def report_bad_folders(runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]) -> int:
    """A line for each folder that counts for nothing as it is; 2 if there is any, as for other bad input."""
    bad = [key for key in runs if not found[key].trainable and found[key].status != "finished"]
    for key in bad:
        hint = "; --data says where a set's images lie" if "data.dataset: " in found[key].problem else ""
        print(f"error: {runs[key].folder}: left out: {found[key].describe(runs[key])}{hint}", file=sys.stderr)
    return 2 if bad else 0


def show(
    blocks: Sequence[Block],
    runs: Mapping[RunKey, Run],
    found: Mapping[RunKey, Found],
    overrides: Sequence[str],
    output: Path | None,
) -> None:
    """Print each table as Markdown, and write it to `output` in three formats."""
    from cskd_hf.paper.cells import batch_notes, fill_all
    from cskd_hf.paper.latex import latex
    from cskd_hf.paper.markdown import as_json, markdown

    for table in dict.fromkeys(block.table for block in blocks):
        grids = fill_all([block for block in blocks if block.table == table], runs, found)
        keys = {(cell.dataset, cell.model, cell.method) for grid in grids for cell in grid.flat()}
        notes = batch_notes({key: run for key, run in runs.items() if key[:3] in keys}, found)
        text = markdown(grids, overrides, notes)
        print(text)
        if output is None:
            continue
        try:
            output.mkdir(parents=True, exist_ok=True)
            for suffix, content in (
                (".md", text),
                (".tex", latex(grids, overrides)),
                (".json", as_json(grids, overrides, notes)),
            ):
                path = output / f"{table}{suffix}"
                path.write_text(content, encoding="utf-8")
                print(f"wrote {path}", file=sys.stderr)
        except OSError as error:
            raise UserError(f"--output: {output} cannot be written: {error}") from None
