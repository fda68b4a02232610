"""Whole epochs of CS-KD on JPEGs by the real training command, beside a plain script as it is often written.

    python scripts/bench/end_to_end.py [--images 600] [--model bench_tiny] [--workers 2] [--repeats 5]

Both train the same network on the same folder of ImageNet-like JPEGs with as many workers; the network costs next to
nothing (`tiny_network.py`), so the loader limits, as it does on a fast device. Any of timm's can be named instead.
The plain script is `plain_loop.py`. Of each run, the epochs after the first are told: supervised images a second while
it trains, evaluation left out, and the share of that time that it waited for data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reporting import ratios, report, spread, table

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 20
PLAIN = "plain script"
PROCESSES, THREADS = ("data.worker_type=process",), ("data.worker_type=thread",)
OURS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "ours, loaded by processes": (PROCESSES, {}),
    "ours, loaded by threads": (THREADS, {}),
}
# Without engine/cpu_tuning.py: OpenMP's own spinning, and the thresholds at which glibc arrives by itself.
SPINS = {"GOMP_SPINCOUNT": "300000"}
GIVES_BACK = {
    "MALLOC_MMAP_MAX_": "65536",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}
WITHOUT: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "processes, OpenMP spins as it likes": (PROCESSES, SPINS),
    "threads, OpenMP spins as it likes": (THREADS, SPINS),
    "processes, freed memory goes back": (PROCESSES, GIVES_BACK),
    "threads, freed memory goes back": (THREADS, GIVES_BACK),
}

# The real command with the network that is registered here; it leaves when the last epoch's line is written.
TRAIN = """
import json, os, sys
from cskd_hf.engine.cpu_tuning import limit_openmp_spinning
limit_openmp_spinning()  # as the command does, before anybody imports torch
import tiny_network
from cskd_hf import train
from cskd_hf.results import run_folder

epochs = int(sys.argv.pop(1))
append = run_folder.append_metrics

def told(folder, line):
    append(folder, line)
    print("LINE", json.dumps(line), flush=True)
    if line["epoch"] + 1 == epochs:
        os._exit(0)

run_folder.append_metrics = told
train.main(sys.argv[1:])
"""


def write_images(root: Path, count: int) -> float:
    """`root/train` and `root/test`, a folder a class; returns the mean bytes of an image."""
    from loader import as_folder, jpegs

    files = jpegs(count)
    as_folder(files, np.arange(count) % NUM_CLASSES, root / "train")
    as_folder(files[: 2 * NUM_CLASSES], np.arange(2 * NUM_CLASSES) % NUM_CLASSES, root / "test")
    return sum(map(len, files)) / count


def write_recipe(place: Path, args: argparse.Namespace) -> Path:
    recipe: dict[str, dict[str, Any]] = {
        "data": {"dataset": str(place / "images"), "batch_size": args.batch_size, "workers": args.workers},
        "model": {"model_name": args.model},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.1, "weight_decay": 1e-4},
        "scheduler": {"num_epochs": args.epochs},
        "run": {"output_dir": str(place / "run"), "val_interval": args.epochs, "resume": "never"},
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # which is YAML too
    return path


def lines(*command: object, cwd: Path, variables: Mapping[str, str] | None = None) -> list[str]:
    """What a program of Python's prints; `variables` are added to its environment.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cwd / "cache")} | (variables or {})
    environment["PYTHONPATH"] = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()


def run_plain(place: Path, args: argparse.Namespace) -> list[tuple[float, float, float]]:
    """Of each epoch: seconds, seconds of waiting, anchors."""
    command = (HERE / "plain_loop.py", place / "images" / "train", args.model, args.batch_size, args.workers)
    return [tuple(json.loads(line)) for line in lines(*command, args.epochs, cwd=place)]


def run_ours(
    place: Path, args: argparse.Namespace, settings: Sequence[str], variables: Mapping[str, str]
) -> list[tuple[float, float, float]]:
    recipe = write_recipe(place, args)
    command = ["-c", TRAIN, args.epochs, recipe, *settings]
    told = [
        json.loads(line[5:]) for line in lines(*command, cwd=place, variables=variables) if line.startswith("LINE ")
    ]
    subprocess.run(["rm", "-rf", place / "run"], check=True)
    return [(e["seconds"], e["seconds"] * e["data_wait_share"], e["seconds"] * e["images_per_second"]) for e in told]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--model", default="bench_tiny")
    parser.add_argument("--batch-size", type=int, default=50, help="anchors a batch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6, help="of each run, the first not counted")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--host", action="store_true", help="ours without what it asks of OpenMP and malloc, too")
    parser.add_argument("--output", type=Path, help="a folder for end_to_end.md and end_to_end.json")
    args = parser.parse_args(argv)
    repeats = min(args.repeats, 3) if args.quick else args.repeats

    ours = OURS | WITHOUT if args.host else OURS
    rates: dict[str, list[float]] = {PLAIN: [], **{name: [] for name in ours}}
    waits: dict[str, list[float]] = {name: [] for name in rates}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        mean_bytes = write_images(place / "images", args.images)
        for _ in range(repeats):
            runs = {PLAIN: run_plain(place, args)}
            runs |= {name: run_ours(place, args, *how) for name, how in ours.items()}
            for name, epochs in runs.items():
                seconds, waited, anchors = (sum(column) for column in zip(*epochs[1:], strict=True))
                rates[name].append(anchors / seconds)
                waits[name].append(waited / seconds)
    compared = {name: ratios(values, rates[PLAIN]) for name, values in rates.items()}
    rows = [
        (name, spread(rates[name], 0), spread(waits[name], 0, 100), spread(compared[name]) if name != PLAIN else "1")
        for name in rates
    ]
    head = ("CS-KD", "supervised images/s", "waiting for data, %", f"beside the {PLAIN}")
    data = f"{args.images} JPEGs of {mean_bytes / 1000:.0f} kB"
    title = f"Epochs of {data}, {args.model}, {args.workers} workers, n = {repeats}"
    figures = {"images_per_second": rates, "data_wait_share": waits, "ratios": compared}
    report(title, "end_to_end", [table(head, rows)], figures, args.output)


if __name__ == "__main__":
    main()
