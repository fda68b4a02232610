"""Smoke-test `reproduce` in minutes: plan, train, tabulate and draw every method on the embedded digits.

    python scripts/smoke.py [--runs DIR] [--output DIR]

Four epochs of a tiny network show that every step works, not how good a method is.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from forkserver import train_forked

from cskd_hf.errors import run_command
from cskd_hf.methods import METHODS
from cskd_hf.paper.blocks import PAPER_NAMES, Block
from cskd_hf.paper.experiments import Setup, runs_of
from cskd_hf.paper.find import inspect_run
from cskd_hf.paper.launch import launcher_prefix, run_missing

# timm's smallest ResNet, at the smallest size that leaves its BatchNorm more than one pixel.
OVERRIDES = (
    "model={model_name: test_resnet}",
    "transform.input_size=[3, 32, 32]",
    "data.batch_size=16",
    "data.workers=0",
    "scheduler.num_epochs=4",
    "run.val_interval=4",
)
TWO_SEEDS = ("cross_entropy", "cskd")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Plan, train, tabulate and draw every method on the digits.")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="folder of run folders (default: temporary)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="tables and figures (default: RUNS/tables)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: every method")
    args = parser.parse_args(argv)
    if args.runs is not None:
        return smoke(args.runs, args.output, args.methods)
    with tempfile.TemporaryDirectory() as root:
        return smoke(Path(root), args.output, args.methods)


def smoke(root: Path, output: Path | None, names: Sequence[str]) -> int:
    """Plan, train, tabulate and draw below `root`; returns the exit status."""
    # One thread: the networks are too small to profit from more.
    os.environ["OMP_NUM_THREADS"] = "1"
    from cskd_hf.paper.plots import draw_figures
    from cskd_hf.paper.tables import print_plan, show

    methods = tuple(PAPER_NAMES.get(method, method) for method in names)
    columns = (("digits", "resnet10"),)
    blocks = [
        Block("smoke", "Every method on the embedded digits", metric, methods, columns, {})
        for metric in ("top1_error", "top5_error", "ece", "recall_at_1")
    ]
    setup = Setup(root, {}, OVERRIDES)
    two_seeds = [Block("smoke", "", "top1_error", TWO_SEEDS, columns, {})]
    runs = runs_of(blocks, [0], setup) | runs_of(two_seeds, [0, 1], setup)

    print_plan(runs, root)
    failures = run_missing(runs, launcher_prefix(None), train_forked)
    states = {key: inspect_run(run) for key, run in runs.items()}
    output = root / "tables" if output is None else output
    show(blocks, runs, states, OVERRIDES, output)
    finished = [key for key in runs if states[key].status == "finished"]
    # Two runs only: t-SNE of every run would take as long as training them all.
    drawn = [runs[key].folder for key in finished if key.method in TWO_SEEDS and key.seed == 0]
    for path in draw_figures(drawn, output / "figures") if drawn else ():
        print(f"wrote {path}", file=sys.stderr)
    for key, reason in failures.items():
        print(f"error: {runs[key].folder}: {reason}", file=sys.stderr)
    print(f"smoke: {len(finished)} of {len(runs)} runs finished", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
