"""The paper's tables and figures from your own runs: plan the missing runs, train them, print the numbers.

cskd-reproduce table1 --datasets cub200 --plan        # the missing runs and their device-hours
cskd-reproduce table1 --datasets cub200 --run         # train them, then print the table
cskd-reproduce table1 --commands                      # one command per missing run, for a job array
cskd-reproduce all --output tables                    # Markdown, LaTeX and JSON of the finished runs
cskd-reproduce evidence strong --run --jobs 2         # ours: at equal training compute, on small sets
cskd-reproduce sweep RECIPE optimizer.lr=0.05,0.1 method.distill_loss_weight=1,3 --run  # ours
cskd-reproduce figures runs/A runs/B --output figures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from cskd_hf.errors import UserError, run_command
from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run, Setup, at_equal_compute, runs_of
from cskd_hf.paper.find import RunState, inspect_runs
from cskd_hf.paper.launch import launcher_prefix, require_program, run_missing
from cskd_hf.paper.selection import all_tables, check_names, select
from cskd_hf.paper.tables import draw, print_commands, print_plan, report_bad_folders, show
from cskd_hf.recipe.arguments import CommandParser

# Settings that differ between the runs of a table → the option that sets them.
_PER_RUN = {
    "run.seed": "--seeds",
    "run.output_dir": "--runs",
    "data.dataset": "--data NAME=FOLDER",
    "method": "--methods; coefficients come from the recipe and the paper",
    "run.resume": "cskd_hf.train to train one run",
}


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["figures"]:
        return _figures(argv[1:])
    if argv[:1] == ["sweep"]:
        return _sweep(argv[1:])
    args = _parser().parse_intermixed_args(argv)
    tables, overrides = _split_words(args)
    if not tables:
        raise UserError(
            "table: none given; allowed: table1 to table6, all, evidence, strong, sweep RECIPE …, or figures RUN …"
        )
    _check_figure(args.figure, tables)
    setup = Setup(args.runs, _folders(args.data), tuple(overrides))
    blocks = at_equal_compute(select(tables, args.datasets, args.models, args.methods), setup)
    runs = runs_of(blocks, _seeds(args.seeds), setup)

    def show_tables(states: Mapping[RunKey, RunState]) -> None:
        show(blocks, runs, states, setup.overrides, args.output)
        if args.figure is not None:
            draw(blocks, runs, states, args.figure)

    return _carry_out(args, runs, show_tables)


def _carry_out(
    args: argparse.Namespace, runs: Mapping[RunKey, Run], show_results: Callable[[Mapping[RunKey, RunState]], None]
) -> int:
    """Print commands or the plan, or train what is missing and show the results; returns the exit status."""
    jobs, prefix = _jobs(args.jobs), launcher_prefix(args.launcher)
    if args.commands:
        return print_commands(runs, prefix)
    if args.plan:
        return print_plan(runs, args.runs)
    failures = run_missing(runs, require_program(prefix), jobs=jobs) if args.run else {}
    if not args.runs.is_dir():
        print(f"note: {args.runs}: no such folder; every run is missing", file=sys.stderr)
    states = inspect_runs(runs)
    show_results(states)
    for key, reason in failures.items():
        print(f"error: {runs[key].folder}: {reason}", file=sys.stderr)
    if args.run:
        return 1 if failures else 0
    return report_bad_folders(runs, states)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="cskd-reproduce",
        description="Print the paper's tables, or ours, from run folders. The paper's figures: figures RUN … "
        "[--output DIR]. A grid of settings: sweep RECIPE section.key=A,B ….",
    )
    add = parser.add_argument
    words = "table1 to table6, all, evidence or strong; overrides for every run, such as data.workers=8"
    add("words", nargs="*", metavar="TABLE | section.key=value", help=words)
    for name, metavar, text in (
        ("datasets", "NAME", "columns, such as cub200 mit67"),
        ("models", "NAME", "networks, such as resnet18 densenet121"),
        ("methods", "NAME", "rows, such as cskd kd mixup+cskd"),
        ("data", "NAME=FOLDER", "image folder of a dataset"),
    ):
        add(f"--{name}", nargs="+", default=[], metavar=metavar, help=text)
    add("--output", type=Path, metavar="DIR", help="also write TABLE.md, TABLE.tex and TABLE.json")
    figure = "with evidence: also draw error against compute, as PNG or PDF"
    add("--figure", type=Path, metavar="FILE", help=figure)
    _add_run_options(parser, seeds="0 1 2; for ImageNet 0")
    return parser


def _add_run_options(parser: argparse.ArgumentParser, seeds: str) -> None:
    add, runs = parser.add_argument, "parent of the run folders (default: runs)"
    add("--seeds", nargs="+", default=[], metavar="N", help=f"seeds (default: {seeds})")
    add("--runs", type=Path, default=Path("runs"), metavar="DIR", help=runs)
    launcher = "replaces python before -m cskd_hf.train, such as 'accelerate launch'"
    add("--launcher", metavar="COMMAND", help=launcher)
    add("--jobs", default="1", metavar="N", help="with --run: runs at a time, sharing the cores (default: 1)")
    action = parser.add_mutually_exclusive_group()
    for name, text in (
        ("plan", "list the missing runs with their estimated device-hours"),
        ("run", "train the missing runs, then print the table"),
        ("commands", "print one command per missing run, for a job array"),
    ):
        action.add_argument(f"--{name}", action="store_true", help=text)


def _split_words(args: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Tables and overrides; argparse appends overrides to the list option before them."""
    tables = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    for values in (args.datasets, args.models, args.methods, args.seeds):
        overrides += [word for word in values if "=" in word]
        values[:] = [word for word in values if "=" not in word]
    overrides += [word for word in args.data if "." in word.partition("=")[0]]
    args.data[:] = [word for word in args.data if "." not in word.partition("=")[0]]
    for override in overrides:
        key = override.partition("=")[0].strip()
        key = "method" if key.startswith("method.") else key
        if key in _PER_RUN:
            raise UserError(f"{override}: cannot be set for all runs of a table; use {_PER_RUN[key]}")
    return tables, overrides


def _seeds(words: Sequence[str]) -> list[int] | None:
    for word in words:
        if not word.isascii() or not word.isdigit() or int(word) >= 2**32:
            raise UserError(f"--seeds: read {word!r}; allowed: whole numbers from 0 to {2**32 - 1}")
    return list(dict.fromkeys(map(int, words))) or None


def _jobs(word: str) -> int:
    if not word.isascii() or not word.isdigit() or int(word) < 1:
        raise UserError(f"--jobs: read {word!r}; allowed: whole numbers from 1")
    return int(word)


def _check_figure(figure: Path | None, tables: Sequence[str]) -> None:
    if figure is not None and figure.suffix not in (".png", ".pdf"):
        raise UserError(f"--figure: read {str(figure)!r}; write a file name that ends in .png or .pdf")
    if figure is not None and "evidence" not in tables:
        raise UserError("--figure: draws the table evidence; write reproduce evidence --figure FILE")


def _folders(words: Sequence[str]) -> dict[str, str]:
    folders = {}
    for word in words:
        name, _, folder = word.partition("=")
        if not folder:
            raise UserError(f"--data: read {word!r}; write NAME=FOLDER, for example cub200=./cub200")
        folders[name] = folder
    blocks = [block for table in all_tables().values() for block in table]
    check_names("--data", folders, sorted(dataset for block in blocks for dataset, _ in block.columns))
    return folders


def _sweep(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="cskd-reproduce sweep",
        description="Compare a grid of settings on hold-out images: section.key=A,B spans a dimension of it.",
    )
    add, settings = parser.add_argument, "settings; a single value applies to every run"
    add("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe")
    add("overrides", nargs="*", metavar="section.key=A,B", help=settings)
    metrics = ("top1_error", "nll", "ece")
    add("--metric", choices=metrics, default="top1_error", help="metric by which rows are ordered")
    _add_run_options(parser, seeds="0")
    args = parser.parse_intermixed_args(argv)
    from cskd_hf.paper import sweep

    args.overrides += [word for word in args.seeds if "=" in word]
    seeds = _seeds([word for word in args.seeds if "=" not in word]) or [0]
    for override in args.overrides:
        if (key := override.partition("=")[0].strip()) in ("run.seed", "run.output_dir", "run.resume"):
            raise UserError(f"{override}: cannot be set for all runs of a sweep; use {_PER_RUN[key]}")
    runs = sweep.sweep_runs(args.recipe, args.overrides, seeds, args.runs)

    def show_table(states: Mapping[RunKey, RunState]) -> None:
        rows, notes = sweep.table(runs, states, args.metric), sweep.notes(runs, states)
        print(sweep.markdown(args.recipe, rows, args.metric, notes), end="")

    return _carry_out(args, runs, show_table)


def _figures(argv: Sequence[str]) -> int:
    parser = CommandParser(
        prog="cskd-reproduce figures", description="The paper's figures of finished runs, as PDF and PNG."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders with the same test images")
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    args = parser.parse_args(argv)
    from cskd_hf.paper.plots import draw_figures

    for path in draw_figures(args.runs, args.output):
        print(path)
    return 0


cli = partial(run_command, main)  # the console script cskd-reproduce

if __name__ == "__main__":
    cli()
