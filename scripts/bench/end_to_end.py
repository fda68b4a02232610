"""Whole epochs of CS-KD on JPEGs: the real training command against a plain script (`plain_loop.py`).

    python scripts/bench/end_to_end.py [--images 600] [--model bench_tiny] [--workers 2] [--repeats 5]

Both train the same network on the same folder of ImageNet-like JPEGs with the same number of workers. The network costs
next to nothing (`tiny_network.py`), so the loader is the bottleneck, as on a fast device; --model takes any of timm's.
Reported for each run, without its first epoch: supervised images per second of training, evaluation excluded, and the
share of that time spent waiting for data.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures import as_folder, jpegs
from reporting import bench_parser, ratios, report, spread, table

from cskd_hf.runs.folder import read_metrics

HERE = Path(__file__).resolve().parent
NUM_CLASSES = 20
PLAIN = "plain script"
OURS: dict[str, dict[str, str]] = {"ours": {}}
# Environments that undo engine/cpu_tuning.py: OpenMP's default spinning, glibc's own dynamic thresholds.
WITHOUT: dict[str, dict[str, str]] = {
    "ours, OpenMP's default spinning": {"GOMP_SPINCOUNT": "300000"},
    "ours, freed memory returned": {
        "MALLOC_MMAP_MAX_": "65536",
        "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
    },
}

# The real command, with the benchmark's network registered.
TRAIN = """
import sys
from cskd_hf.engine.cpu_tuning import limit_openmp_spinning
limit_openmp_spinning()  # before torch is imported, as in the command
import tiny_network
from cskd_hf import train
sys.exit(train.main(sys.argv[1:]))
"""


def write_images(root: Path, count: int) -> float:
    """Write `root/train` and `root/test`, a folder per class; returns the mean bytes of an image."""
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
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def run_python(*command: object, cwd: Path, variables: Mapping[str, str] | None = None) -> list[str]:
    """Lines that Python prints for these arguments; `variables` are added to its environment.

    Raises:
        SystemExit: the program failed.
    """
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(cwd / "cache")} | dict(variables or {})
    environment["PYTHONPATH"] = f"{HERE}{os.pathsep}{HERE.parents[1]}"
    done = subprocess.run(
        [sys.executable, *map(str, command)], env=environment, cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.splitlines()


def run_plain(place: Path, args: argparse.Namespace) -> list[tuple[float, float, float]]:
    """(seconds, seconds waiting for data, anchors) of each epoch."""
    command = (HERE / "plain_loop.py", place / "images" / "train", args.model, args.batch_size, args.workers)
    return [tuple(json.loads(line)) for line in run_python(*command, args.epochs, cwd=place)]


def run_ours(place: Path, args: argparse.Namespace, variables: Mapping[str, str]) -> list[tuple[float, float, float]]:
    run_python("-c", TRAIN, write_recipe(place, args), cwd=place, variables=variables)
    epochs = read_metrics(place / "run")
    shutil.rmtree(place / "run")
    return [(e["seconds"], e["seconds"] * e["data_wait_share"], e["seconds"] * e["images_per_second"]) for e in epochs]


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, repeats=5)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--model", default="bench_tiny")
    parser.add_argument("--batch-size", type=int, default=50, help="anchors per batch")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6, help="per run, the first is not counted")
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--host", action="store_true", help="also without the tuning of OpenMP and malloc")
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
            runs |= {name: run_ours(place, args, variables) for name, variables in ours.items()}
            for name, epochs in runs.items():
                seconds, waited, anchors = (sum(column) for column in zip(*epochs[1:], strict=True))
                rates[name].append(anchors / seconds)
                waits[name].append(waited / seconds)
    compared = {name: ratios(values, rates[PLAIN]) for name, values in rates.items()}
    rows = [
        (name, spread(rates[name], 0), spread(waits[name], 0, 100), spread(compared[name]) if name != PLAIN else "1")
        for name in rates
    ]
    head = ("CS-KD", "supervised images/s", "waiting for data, %", f"× {PLAIN}")
    data = f"{args.images} JPEGs of {mean_bytes / 1000:.0f} kB"
    title = f"Epochs of {data}, {args.model}, {args.workers} workers, n = {repeats}"
    figures = {"images_per_second": rates, "data_wait_share": waits, "ratios": compared}
    report(title, "end_to_end", [table(head, rows)], figures, args.output)


if __name__ == "__main__":
    main()
