"""The paper's tables from runs of one's own: what is missing, how long it will take, training it, the numbers.

python -m cskd_hf.reproduce table1 --datasets cub200 --plan        # what is missing, and its device-hours
python -m cskd_hf.reproduce table1 --datasets cub200 --run         # train it, then show the table
python -m cskd_hf.reproduce all --output tables                    # Markdown, LaTeX and JSON of what there is
python -m cskd_hf.reproduce figures runs/A runs/B --output figures
python -m cskd_hf.reproduce --smoke                                # the whole way, on digits, in minutes
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cskd_hf.errors import UserError, run_command
from cskd_hf.experiments import Run, RunKey, Setup, runs_of
from cskd_hf.launch import command_of, launcher_prefix, require_program, run_missing
from cskd_hf.paper import EVIDENCE, Block, check_names, select
from cskd_hf.results.collect import Found, find_run


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["figures"]:
        return _figures(argv[1:])
    args = _parser().parse_intermixed_args(argv)
    if args.smoke:
        from cskd_hf.smoke import smoke

        if args.words:
            raise UserError(f"--smoke: read {' '.join(args.words)!r}; it takes --runs and --output alone")
        return smoke(args.runs, args.output)
    tables, overrides = _sort_words(args)
    if not tables:
        raise UserError("table: none named; allowed: table1 to table6, all, evidence, or figures RUN …, or --smoke")
    root = Path("runs") if args.runs is None else args.runs
    setup = Setup(root, _folders(args.data), tuple(overrides))
    blocks = select(tables, args.datasets, args.models, args.methods)
    prefix = launcher_prefix(args.launcher)
    runs = runs_of(blocks, _seeds(args.seeds), setup)

    if args.commands:
        return _print_commands(runs, prefix)
    if args.plan:
        return print_plan(runs, root)
    failures = run_missing(runs, require_program(prefix)) if args.run else {}
    if not root.is_dir():
        print(f"note: there is no folder {root}; every run is missing", file=sys.stderr)
    found = {key: find_run(run) for key, run in runs.items()}
    show(blocks, runs, found, setup.overrides, args.output)
    for key, why in failures.items():
        print(f"error: {runs[key].folder}: {why}", file=sys.stderr)
    if args.run:
        return 1 if failures else 0
    return _tell_bad_folders(runs, found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.reproduce",
        description="The paper's tables 1 to 6 from run folders; also: `figures RUN … [--output DIR]`.",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="TABLE | section.key=value",
        help="table1 to table6, all, or evidence; settings for every run: data.workers=8",
    )
    parser.add_argument("--datasets", nargs="+", default=[], metavar="NAME", help="columns: cub200 mit67 …")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME", help="networks: resnet18 densenet121 …")
    parser.add_argument("--methods", nargs="+", default=[], metavar="NAME", help="rows: cskd kd mixup+cskd pskd …")
    parser.add_argument("--seeds", nargs="+", default=[], metavar="N", help="default: 0 1 2; ImageNet: 0")
    parser.add_argument("--data", nargs="+", default=[], metavar="NAME=FOLDER", help="where a set's images lie")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="the folder of run folders (default: runs)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="also write TABLE.md, TABLE.tex and TABLE.json there"
    )
    parser.add_argument("--launcher", metavar="WORDS", help="before `-m cskd_hf.train`: 'accelerate launch …'")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="list the missing runs and how long they will take")
    what.add_argument(
        "--run", action="store_true", help="train the missing runs one after another, then show the table"
    )
    what.add_argument("--commands", action="store_true", help="print a command for each missing run, for job arrays")
    what.add_argument("--smoke", action="store_true", help="plan, train and show every method on the embedded digits")
    return parser


def _sort_words(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Tables and overrides; argparse gives overrides to whatever list option stands before them."""
    tables = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    for given in (args.datasets, args.models, args.methods, args.seeds):
        overrides += [word for word in given if "=" in word]
        given[:] = [word for word in given if "=" not in word]
    overrides += [word for word in args.data if "." in word.partition("=")[0]]
    args.data[:] = [word for word in args.data if "." not in word.partition("=")[0]]
    instead = {
        "run.seed": "--seeds",
        "run.output_dir": "--runs",
        "data.dataset": "--data NAME=FOLDER",
        "method": "--methods, each with the recipe's and the paper's coefficients",
        "run.resume": "cskd_hf.train; here auto alone makes sense",
    }
    for override in overrides:
        key = override.partition("=")[0].strip()
        key = "method" if key.startswith("method.") else key
        if key in instead:
            raise UserError(f"{override}: not for every run of a table; use {instead[key]}")
    return tables, overrides


def _seeds(words: Sequence[str]) -> list[int] | None:
    for word in words:
        if not word.isascii() or not word.isdigit() or int(word) >= 2**32:
            raise UserError(f"--seeds: read {word!r}; allowed: whole numbers from 0 to {2**32 - 1}")
    return list(dict.fromkeys(map(int, words))) or None


def _folders(words: Sequence[str]) -> dict[str, str]:
    folders = {}
    for word in words:
        name, equals, folder = word.partition("=")
        if not equals or not folder:
            raise UserError(f"--data: read {word!r}; write NAME=FOLDER, for example cub200=./cub200")
        folders[name] = folder
    known = {dataset for block in select(["all", EVIDENCE]) for dataset, _ in block.columns}
    check_names("--data", folders, sorted(known))
    return folders


def _print_commands(runs: Mapping[RunKey, Run], prefix: Sequence[str]) -> int:
    found = {key: find_run(run) for key, run in runs.items()}
    missing = {key: run for key, run in runs.items() if found[key].trainable}
    for run in missing.values():
        print(shlex.join(command_of(run, prefix)))
    teachers = {run.teacher for run in missing.values() if run.teacher in missing}
    if teachers:
        lines = [str(number) for number, key in enumerate(missing, start=1) if key in teachers]
        print(f"note: lines {', '.join(lines)} train teachers; let them finish before the rest", file=sys.stderr)
    return _tell_bad_folders(runs, found)


def print_plan(runs: Mapping[RunKey, Run], root: Path) -> int:
    from cskd_hf.estimate import device_hours, estimate

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
    return _tell_bad_folders(runs, found)


def _tell_bad_folders(runs: Mapping[RunKey, Run], found: Mapping[RunKey, Found]) -> int:
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
    from cskd_hf.results.table_formats import as_json, markdown
    from cskd_hf.results.table_latex import latex
    from cskd_hf.results.tables import batch_notes, fill_all

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


def _figures(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.reproduce figures", description="The paper's figures, from finished runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    args = parser.parse_args(argv)
    from cskd_hf.results.paper_figures import draw_figures

    for path in draw_figures(args.runs, args.output):
        print(path)
    return 0


if __name__ == "__main__":
    run_command(main)
