"""Start-up time: of the commands, and of training up to its first update on a dataset of ImageNet's size.

    python scripts/bench/start.py [--rows 1281167] [--repeats 5] [--shares 5 50 95]

First, `--help` of every command, and a mistake in a recipe. Then the training command on a saved dataset of that many
tiny images, from the start of Python to the first update of a ResNet-50 on 8 images, fresh and resumed at these shares
of an epoch. The checkpoint is one that the command wrote, with its position changed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pictures import save_tiny_images
from reporting import alternate, bench_parser, ratios, report, spread, table

BATCH = 8
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}
COMMANDS = ("train", "evaluate", "predict", "reproduce", "publish", "check", "recipe")
WITH_RECIPE = ("train", "check", "recipe")
MISTAKE = ("recipes/imagenet_resnet50.yaml", "optimizer.lrr=0.1")

# The training command, which exits after its first update.
FIRST_UPDATE = """
import os, sys
from cskd_hf import train
from cskd_hf.engine import trainer

original = trainer.training_updates

def first_update(*args, **kwargs):
    for update in original(*args, **kwargs):
        os._exit(0)

trainer.training_updates = first_update
train.main(sys.argv[1:])
"""


def seconds(*command: object, status: int = 0) -> float:
    """Duration of a Python command.

    Raises:
        SystemExit: its exit status is not `status`.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], env=ENVIRONMENT, capture_output=True, text=True)
    duration = time.perf_counter() - start
    if done.returncode != status:
        raise SystemExit(f"{command}: status {done.returncode}\n{done.stderr}")
    return duration


def measure_commands(repeats: int) -> dict[str, list[float]]:
    """Seconds of every command that needs no data."""
    calls = {f"{name} --help": partial(seconds, "-m", f"cskd_hf.{name}", "--help") for name in COMMANDS}
    for name in WITH_RECIPE:
        calls[f"{name}, mistake in the recipe"] = partial(seconds, "-m", f"cskd_hf.{name}", *MISTAKE, status=2)
    # The first run fills the page cache and compiles.
    return {name: times[1:] for name, times in alternate(calls, repeats + 1).items()}


def write_recipe(folder: Path) -> Path:
    recipe: dict[str, dict[str, Any]] = {
        "data": {"dataset": str(folder / "images"), "batch_size": BATCH, "workers": 2},
        "transform": {"input_size": [3, 64, 64]},
        "model": {"model_name": "resnet50"},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.1},
        "scheduler": {"num_epochs": 2},
        "run": {"output_dir": str(folder / "run")},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def move_checkpoint(run: Path, position: int) -> None:
    """Set the position of the run's only checkpoint to a sample of the first epoch."""
    from cskd_hf.runs import checkpoint_folders

    (saved,) = checkpoint_folders.list_checkpoints(run / "checkpoints")
    state = json.loads((saved / checkpoint_folders.STATE).read_text(encoding="utf-8"))
    state["progress"] |= {"position": position, "step": position // BATCH}
    del state["sha256"][checkpoint_folders.STATE]
    state["sha256"][checkpoint_folders.STATE] = checkpoint_folders.state_sha256(state)
    (saved / checkpoint_folders.STATE).write_text(json.dumps(state), encoding="utf-8")


def measure_starts(folder: Path, rows: int, shares: Sequence[int], repeats: int) -> dict[str, list[float]]:
    """Seconds to the first update, fresh and resumed."""
    save_tiny_images(folder / "images", rows, max(rows // 25, 1000))
    recipe, run = write_recipe(folder), folder / "run"
    stopped = [sys.executable, "-m", "cskd_hf.train", str(recipe), "run.max_hours=1e-9"]
    positions = {f"resumed at {share} %": share * rows // 100 // BATCH * BATCH for share in shares}
    times: dict[str, list[float]] = {name: [] for name in ("fresh", *positions)}
    for repeat in range(repeats + 1):
        shutil.rmtree(run, ignore_errors=True)
        durations = {"fresh": seconds("-c", FIRST_UPDATE, recipe)}
        shutil.rmtree(run)
        subprocess.run(stopped, env=ENVIRONMENT, capture_output=True)
        for name, position in positions.items():
            move_checkpoint(run, position)
            durations[name] = seconds("-c", FIRST_UPDATE, recipe)
        if repeat:
            for name, duration in durations.items():
                times[name].append(duration)
    return times


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, repeats=5)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument(
        "--shares", type=int, nargs="+", default=[5, 50, 95], metavar="PERCENT", help="shares of an epoch"
    )
    parser.add_argument("--quick", action="store_true", help="few repeats")
    args = parser.parse_args(argv)
    repeats = min(args.repeats, 3) if args.quick else args.repeats

    commands = measure_commands(repeats)
    with tempfile.TemporaryDirectory() as folder:
        starts = measure_starts(Path(folder), args.rows, args.shares, repeats)
    tables = [
        table(("command", "seconds"), [(name, spread(values)) for name, values in commands.items()]),
        table(
            (f"first update, {args.rows:,} training images", "seconds", "ratio to fresh"),
            [(name, spread(values), spread(ratios(values, starts["fresh"]))) for name, values in starts.items()],
        ),
    ]
    figures = {"commands": commands, "starts": starts}
    report(f"Start-up; n = {repeats} after a warm-up", "start", tables, figures, args.output)


if __name__ == "__main__":
    main()
