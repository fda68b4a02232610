"""The paper's tables from runs of one's own: what is missing, how long it will take, training it, the numbers.

python -m cskd_hf.reproduce table1 --datasets cub200 --plan        # what is missing, and its device-hours
python -m cskd_hf.reproduce table1 --datasets cub200 --run         # train it, then show the table
python -m cskd_hf.reproduce all --output tables                    # Markdown, LaTeX and JSON of what there is
python -m cskd_hf.reproduce figures runs/A runs/B --output figures
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cskd_hf.errors import UserError, run_command
from cskd_hf.paper.blocks import EVIDENCE, check_names, select
from cskd_hf.paper.experiments import Setup, runs_of
from cskd_hf.paper.find import find_run
from cskd_hf.paper.launch import launcher_prefix, require_program, run_missing
from cskd_hf.paper.tables import print_commands, print_plan, report_bad_folders, show


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["figures"]:
        return _figures(argv[1:])
    args = _parser().parse_intermixed_args(argv)
    tables, overrides = _sort_words(args)
    if not tables:
        raise UserError("table: none named; allowed: table1 to table6, all, evidence, or figures RUN …")
    root = Path("runs") if args.runs is None else args.runs
    setup = Setup(root, _folders(args.data), tuple(overrides))
    blocks = select(tables, args.datasets, args.models, args.methods)
    prefix = launcher_prefix(args.launcher)
    runs = runs_of(blocks, _seeds(args.seeds), setup)

    if args.commands:
        return print_commands(runs, prefix)
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
    return report_bad_folders(runs, found)


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


def _figures(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.reproduce figures", description="The paper's figures, from finished runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    parser.add_argument("--output", type=Path, default=Path("figures"), metavar="DIR", help="default: figures")
    args = parser.parse_args(argv)
    from cskd_hf.paper.plots import draw_figures

    for path in draw_figures(args.runs, args.output):
        print(path)
    return 0


def cli() -> None:
    """The console script cskd-reproduce."""
    run_command(main)


if __name__ == "__main__":
    cli()
