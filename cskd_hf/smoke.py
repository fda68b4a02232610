"""The whole way of `reproduce` in minutes: every method on the embedded digits, planned, trained, tabled, drawn.

Four epochs of a tiny network show that each step works, not what a method is worth.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from cskd_hf.experiments import Setup, runs_of
from cskd_hf.launch import launcher_prefix, run_missing, train_forked
from cskd_hf.methods import METHODS
from cskd_hf.paper import PAPER_NAMES, Block
from cskd_hf.results.collect import find_run

# timm's smallest ResNet, at the smallest size that leaves its BatchNorm more than one pixel.
OVERRIDES = (
    "model={model_name: test_resnet}",
    "transform.input_size=[3, 32, 32]",
    "data.batch_size=16",
    "data.workers=0",
    "scheduler.num_epochs=4",
    "run.val_interval=4",
)
TWICE = ("cross_entropy", "cskd")


def smoke(root: Path | None, output: Path | None) -> int:
    """Plan, train, show and draw; returns the exit status.

    Args:
        root: the folder of run folders; None: a temporary one, removed at the end.
        output: where tables and figures go; None: beside the runs.
    """
    if root is None:
        with tempfile.TemporaryDirectory() as place:
            return smoke(Path(place), output)
    # More threads would only wait for each other, on networks this small and maybe on cores that are not free.
    os.environ["OMP_NUM_THREADS"] = "1"
    from cskd_hf.reproduce import print_plan, show
    from cskd_hf.results.paper_figures import draw_figures

    methods = tuple(PAPER_NAMES.get(method, method) for method in METHODS)
    blocks = [
        Block("smoke", "Every method on the embedded digits", metric, methods, (("digits", "resnet10"),), {})
        for metric in ("top1_error", "top5_error", "ece", "recall_at_1")
    ]
    setup = Setup(root, {}, OVERRIDES)
    twice = [Block("smoke", "", "top1_error", TWICE, blocks[0].columns, {})]
    runs = runs_of(blocks, [0], setup) | runs_of(twice, [0, 1], setup)

    print_plan(runs, root)
    failures = run_missing(runs, launcher_prefix(None), train_forked)
    found = {key: find_run(run) for key, run in runs.items()}
    output = root / "tables" if output is None else output
    show(blocks, runs, found, OVERRIDES, output)
    finished = [key for key in runs if found[key].status == "finished"]
    # Of these two alone: a t-SNE of each run would take as long as training them all.
    drawn = [runs[key].folder for key in finished if key.method in TWICE and key.seed == 0]
    for path in draw_figures(drawn, output / "figures") if drawn else ():
        print(f"wrote {path}", file=sys.stderr)
    for key, why in failures.items():
        print(f"error: {runs[key].folder}: {why}", file=sys.stderr)
    print(f"smoke: {len(finished)} of {len(runs)} runs finished", file=sys.stderr)
    return 1 if failures else 0
