"""What safety costs: checkpoints and signals beside a step, a resumed start beside a fresh one, memory over 20 epochs.

    python scripts/bench/overhead.py [--repeats 5] [--images 50000]

Steps: CS-KD of ResNet-18 on 32 pairs of 64-px images (small: a longer step makes every share smaller); between the
steps, the question whether to stop, asked on one process and, by torchrun, on two; and a whole checkpoint, as a run
writes one an epoch by default.

Starts: the real command until its first update, fresh and from checkpoints at 5, 50 and 95 % of an epoch, in turn. The
checkpoints are written by the same code with the position set: how the weights came about does not matter to a start.

Memory: the resident set of a run and of its loader's workers, read after each epoch of the real command.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

STEPS = """
import json, sys, tempfile, time
from pathlib import Path
import timm, torch
from accelerate import Accelerator
from cskd_hf.engine.checkpoint import save_checkpoint
from cskd_hf.engine.failures import check_weights
from cskd_hf.engine.loop import Progress
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.stopping import StopRequest
from cskd_hf.methods import CSKD
from cskd_hf.methods.base import Batch

repeats = int(sys.argv[1])
accelerator = Accelerator(cpu=True)
model = timm.create_model("resnet18", num_classes=200)
objective = Objective(CSKD(), model)
optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
objective, optimizer = accelerator.prepare(objective, optimizer)
batch = Batch(torch.randn(64, 3, 64, 64), torch.randint(200, (64,)), torch.arange(64))
found = {"processes": accelerator.num_processes, "step": [], "asked": [], "saved": []}
with StopRequest(accelerator) as stop, tempfile.TemporaryDirectory() as folder:
    for number in range(repeats + 1):
        began = time.perf_counter()
        accelerator.backward(objective(batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
        found["step"].append(time.perf_counter() - began)
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        for _ in range(1000):
            stop.agreed()
        found["asked"].append((time.perf_counter() - began) / 1000)
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        check_weights(model, number)
        if accelerator.is_main_process:
            save_checkpoint(Path(folder), model, optimizer, None, Progress(step=number), "", keep=2)
            found["bytes"] = sum(file.stat().st_size for file in next(Path(folder).iterdir()).iterdir())
        accelerator.wait_for_everyone()
        found["saved"].append(time.perf_counter() - began)
if accelerator.is_main_process:
    print("FOUND", json.dumps(found))
"""

FIRST_UPDATE = """
import os, sys, time
began = time.perf_counter()
import cskd_hf.engine.loop as loop
from cskd_hf import train
original = loop.training_updates
def until_the_first(*args, **kwargs):
    for update in original(*args, **kwargs):
        print("FOUND", time.perf_counter() - began, flush=True)
        os._exit(0)
loop.training_updates = until_the_first
train.main(sys.argv[1:])
"""

EPOCHS = """
import json, sys
import psutil
from cskd_hf import train
from cskd_hf.results import run_folder
original = run_folder.append_metrics
def watched(folder, line):
    own = psutil.Process()
    workers = [child.memory_info().rss for child in own.children(recursive=True)]
    print("FOUND", json.dumps([own.memory_info().rss, workers]), flush=True)
    original(folder, line)
run_folder.append_metrics = watched
train.main(sys.argv[1:])
"""

BATCH = 32
TRAIN = [sys.executable, "-m", "cskd_hf.train"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
QUIET: dict[str, Any] = {"env": ENVIRONMENT, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def found(program: str, *arguments: object, processes: int = 1) -> list[str]:
    """What a program in a process of its own, or of torchrun, printed behind FOUND."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), file.name, *map(str, arguments)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]


def spread(values: list[float], scale: float = 1.0, digits: int = 2) -> str:
    """Median (least to greatest)."""
    middle, low, high = (scale * part for part in (statistics.median(values), min(values), max(values)))
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def steps(repeats: int) -> None:
    shares = []
    print("\n| processes | step, s | asking whether to stop, µs a step | one checkpoint, s |")
    print("|---|---|---|---|")
    for processes in (1, 2):
        (line,) = found(STEPS, repeats, processes=processes)
        took = json.loads(line)
        assert took["processes"] == processes
        step, asked, saved = (took[name][1:] for name in ("step", "asked", "saved"))  # the first warms up
        print(f"| {processes} | {spread(step)} | {spread(asked, 1e6)} | {spread(saved)} |")
        share = statistics.median(asked) / statistics.median(step)
        shares.append(f"{processes} processes: asking is {100 * share:.4f} % of a step")
        for name, length in (("CUB-200", 188), ("CIFAR-100", 391), ("ImageNet", 5005)):
            share = statistics.median(saved) / (length * statistics.median(step))
            shares.append(
                f"{processes} processes: a checkpoint after each of {name}'s epochs of {length}: {100 * share:.2f} %"
            )
    print(f"\nA checkpoint has {took['bytes'] / 1e6:.0f} MB.")
    for line in shares:
        print(f"* {line}")


def starts(place: Path, images: int, repeats: int) -> None:
    recipe = write_recipe(place, images)
    folder = place / "run"
    first: dict[str, list[float]] = {}
    shares = {"fresh": 0.0, "at 5 %": 0.05, "at 50 %": 0.5, "at 95 %": 0.95}
    for _ in range(repeats):
        for name, share in shares.items():
            stop_at(folder, int(share * images) // BATCH * BATCH)
            (seconds,) = found(FIRST_UPDATE, recipe, f"run.output_dir={folder}")
            first.setdefault(name, []).append(float(seconds))
            if share == 0.0:  # the checkpoint that the others start from
                subprocess.run([*TRAIN, recipe, f"run.output_dir={folder}", "run.max_hours=1e-9"], **QUIET)
    print(f"\n| start, {images:,} images | seconds to the first update | beside a fresh one |\n|---|---|---|")
    for name, seconds in first.items():
        ratios = [one / fresh for one, fresh in zip(seconds, first["fresh"], strict=True)]
        print(f"| {name} | {spread(seconds)} | {spread(ratios)} |")


def write_recipe(place: Path, images: int) -> Path:
    """A recipe on so many tiny images in 100 classes, in the form that `save_to_disk` leaves."""
    import io

    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, disable_progress_bars
    from PIL import Image as PillowImage

    disable_progress_bars()
    buffer = io.BytesIO()
    PillowImage.fromarray(np.random.RandomState(0).randint(0, 255, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
    features = Features({"image": Image(decode=False), "label": ClassLabel(num_classes=100)})
    splits = {}
    for split, count in (("train", images), ("test", 200)):
        columns = {"image": [{"bytes": buffer.getvalue(), "path": None}] * count, "label": np.arange(count) % 100}
        splits[split] = Dataset.from_dict(columns, features=features)
    DatasetDict(splits).save_to_disk(place / "images")
    recipe: dict[str, dict[str, Any]] = {
        "data": {"dataset": str(place / "images"), "batch_size": BATCH, "workers": 2},
        "transform": {"input_size": [3, 32, 32]},
        "model": {"model_name": "test_resnet"},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.1},
        "scheduler": {"num_epochs": 2},
    }
    path = place / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # which is YAML too
    return path


def stop_at(folder: Path, position: int) -> None:
    """Leave the run folder as a run leaves it that stopped at a sample of its first epoch; at 0: no folder."""
    from cskd_hf.engine import checkpoint

    if position == 0:
        shutil.rmtree(folder, ignore_errors=True)
        return
    (saved,) = checkpoint.list_checkpoints(folder / "checkpoints")
    state = json.loads((saved / checkpoint.STATE).read_text(encoding="utf-8"))
    state["progress"] |= {"position": position, "step": position // BATCH}
    del state["sha256"][checkpoint.STATE]
    state["sha256"][checkpoint.STATE] = checkpoint._state_sha256(state)
    (saved / checkpoint.STATE).write_text(json.dumps(state), encoding="utf-8")


def memory(epochs: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        settings = ["model.model_name=test_resnet", "transform.input_size=[3, 32, 32]", "data.workers=2"]
        settings += [f"scheduler.num_epochs={epochs}", "run.val_interval=1", f"run.output_dir={place}/run"]
        lines = found(EPOCHS, "recipes/digits_resnet10.yaml", *settings)
    print("\n| after epoch | process, MiB | workers, MiB |\n|---|---|---|")
    for number, line in enumerate(lines, start=1):
        own, workers = json.loads(line)
        if number in (1, 2, 5, 10, 15, epochs):
            print(f"| {number} | {own / 2**20:.1f} | {', '.join(f'{one / 2**20:.1f}' for one in workers)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="What safety costs.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=50_000, help="of the set that the starts are timed on")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=("steps", "starts", "memory"))
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"medians with the range of n = {args.repeats}")
    if args.only in (None, "steps"):
        steps(args.repeats)
    if args.only in (None, "starts"):
        with tempfile.TemporaryDirectory() as place:
            starts(Path(place), args.images, args.repeats)
    if args.only in (None, "memory"):
        memory(args.epochs)


if __name__ == "__main__":
    main()
