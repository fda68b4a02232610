"""How long the commands take to say something, and training to make its first update on a set of ImageNet's size.

    python scripts/bench/start.py [--rows 1281167] [--repeats 5] [--shares 5 50 95]

First: `--help` of every command, and a mistake in a recipe. Then the real training command on a prepared set of that
many rows (tiny images: none but the first batch is read), from the start of Python until the first update of a
ResNet-50 is made, fresh and resumed at such shares of an epoch. The update itself is of 8 small images: the start is
what is measured. The checkpoint is one that the command wrote, with its position moved: how the weights came about
does not matter to a start.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from reporting import ratios, report, spread, table

BATCH = 8
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1"}
COMMANDS = ("train", "evaluate", "predict", "reproduce", "publish", "check", "recipe")
WITH_RECIPE = ("train", "check", "recipe")
MISTAKE = ("recipes/imagenet_resnet50.yaml", "optimizer.lrr=0.1")

# The real command, which leaves when its first update is made.
UNTIL_THE_FIRST = """
import os, sys
import cskd_hf.engine.updates as loop
from cskd_hf import train

original = loop.training_updates

def until_the_first(*args, **kwargs):
    for update in original(*args, **kwargs):
        print("FIRST", flush=True)
        os._exit(0)

loop.training_updates = until_the_first
train.main(sys.argv[1:])
"""


def seconds(*command: object, status: int = 0) -> float:
    """Of a command of Python's, from its start to its end.

    Raises:
        SystemExit: it ended with another status.
    """
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], env=ENVIRONMENT, capture_output=True, text=True)
    took = time.perf_counter() - began
    if done.returncode != status:
        raise SystemExit(f"{command}: status {done.returncode}\n{done.stderr}")
    return took


def answers(repeats: int) -> dict[str, list[float]]:
    """Seconds of everything that needs no data."""
    calls = {f"{name} --help": (("-m", f"cskd_hf.{name}", "--help"), 0) for name in COMMANDS}
    calls |= {f"{name}, a mistake in the recipe": (("-m", f"cskd_hf.{name}", *MISTAKE), 2) for name in WITH_RECIPE}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, (call, status) in calls.items():
            took = seconds(*call, status=status)
            if repeat:  # the first reads files that are not in memory yet, and compiles
                found[name].append(took)
    return found


def prepare(place: Path, rows: int) -> Path:
    """A saved set in 1,000 classes in order, and a recipe of it."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, disable_progress_bars
    from datasets import Image as ImageFeature

    disable_progress_bars()
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 90)).save(buffer, "PNG")
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=1000)})

    def split(count: int, salt: str) -> Dataset:
        # Bytes after a PNG's end mean nothing to decoders; they make the images differ.
        images = [{"bytes": buffer.getvalue() + f"{salt}{i}".encode(), "path": None} for i in range(count)]
        return Dataset.from_dict({"image": images, "label": np.arange(count) * 1000 // count}, features=features)

    DatasetDict(train=split(rows, "t"), test=split(max(rows // 25, 1000), "v")).save_to_disk(str(place / "images"))
    recipe: dict[str, dict[str, Any]] = {
        "data": {"dataset": str(place / "images"), "batch_size": BATCH, "workers": 2},
        "transform": {"input_size": [3, 64, 64]},
        "model": {"model_name": "resnet50"},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.1},
        "scheduler": {"num_epochs": 2},
        "run": {"output_dir": str(place / "run")},
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # which is YAML too
    return path


def move(run: Path, position: int) -> None:
    """Let the run's one checkpoint stand at a sample of the first epoch."""
    from cskd_hf.runs import checkpoint

    (saved,) = checkpoint.list_checkpoints(run / "checkpoints")
    state = json.loads((saved / checkpoint.STATE).read_text(encoding="utf-8"))
    state["progress"] |= {"position": position, "step": position // BATCH}
    del state["sha256"][checkpoint.STATE]
    state["sha256"][checkpoint.STATE] = checkpoint._state_sha256(state)
    (saved / checkpoint.STATE).write_text(json.dumps(state), encoding="utf-8")


def starts(place: Path, rows: int, shares: Sequence[int], repeats: int) -> dict[str, list[float]]:
    recipe, run = prepare(place, rows), place / "run"
    stopped = [sys.executable, "-m", "cskd_hf.train", str(recipe), "run.max_hours=1e-9"]
    positions = {f"resumed at {share} %": share * rows // 100 // BATCH * BATCH for share in shares}
    found: dict[str, list[float]] = {"fresh": []} | {name: [] for name in positions}
    for repeat in range(repeats + 1):
        shutil.rmtree(run, ignore_errors=True)
        took = {"fresh": seconds("-c", UNTIL_THE_FIRST, recipe)}
        shutil.rmtree(run)
        subprocess.run(stopped, env=ENVIRONMENT, capture_output=True)
        for name, position in positions.items():
            move(run, position)
            took[name] = seconds("-c", UNTIL_THE_FIRST, recipe)
        if repeat:
            for name, value in took.items():
                found[name].append(value)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_281_167)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--shares", type=int, nargs="+", default=[5, 50, 95], metavar="PERCENT", help="of an epoch")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--output", type=Path, help="a folder for start.md and start.json")
    args = parser.parse_args(argv)
    repeats = min(args.repeats, 3) if args.quick else args.repeats

    said = answers(repeats)
    with tempfile.TemporaryDirectory() as place:
        first = starts(Path(place), args.rows, args.shares, repeats)
    tables = [
        table(("until the command ends", "seconds"), [(name, spread(values)) for name, values in said.items()]),
        table(
            (f"until the first update, {args.rows:,} training images", "seconds", "beside a fresh one"),
            [(name, spread(values), spread(ratios(values, first["fresh"]))) for name, values in first.items()],
        ),
    ]
    figures = {"answers": said, "starts": first}
    report(f"Starting; n = {repeats} after one that is not counted", "start", tables, figures, args.output)


if __name__ == "__main__":
    main()
