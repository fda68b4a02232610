"""What safety costs: checkpoints and signals beside a step; memory over 20 epochs. Restarts are start.py's.

    python scripts/bench/overhead.py [--repeats 5] [--epochs 20]

Steps: CS-KD of ResNet-18 on 32 pairs of 64-px images (small: a longer step makes every share smaller); between the
steps, the question whether to stop, asked on one process and, by torchrun, on two; and a whole checkpoint, as a run
writes one an epoch by default.

Memory: the resident set of a run and of its loader's workers, read after each epoch of the real command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import report, spread, table

STEPS = """
import json, sys, tempfile, time
from pathlib import Path
import timm, torch
from accelerate import Accelerator
from cskd_hf.runs.checkpoint import save_checkpoint
from cskd_hf.engine.failures import check_weights
from cskd_hf.engine.updates import Progress
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

AFTER_EPOCHS = """
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

EPOCHS_IN_STEPS = {"CUB-200": 188, "CIFAR-100": 391, "ImageNet": 5005}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


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


def steps(repeats: int) -> tuple[list[str], dict[str, Any]]:
    """Tables and figures."""
    rows, shares, figures = [], [], {}
    for processes in (1, 2):
        (line,) = found(STEPS, repeats, processes=processes)
        took = json.loads(line)
        assert took["processes"] == processes
        step, asked, saved = (took[name][1:] for name in ("step", "asked", "saved"))  # the first warms up
        figures[f"{processes} processes"] = {"step": step, "asked": asked, "saved": saved, "bytes": took["bytes"]}
        rows.append((processes, spread(step), spread(asked, scale=1e6), spread(saved)))
        each = statistics.median(step)
        shares.append(
            [processes, f"{100 * statistics.median(asked) / each:.4f} %"]
            + [f"{100 * statistics.median(saved) / (length * each):.2f} %" for length in EPOCHS_IN_STEPS.values()]
        )
    size = f"one checkpoint of {took['bytes'] / 1e6:.0f} MB, s"
    epochs = [f"a checkpoint, of {name}'s {length} steps" for name, length in EPOCHS_IN_STEPS.items()]
    return [
        table(("processes", "step, s", "asking whether to stop, µs a step", size), rows),
        table(("processes", "asking, of a step", *epochs), shares),
    ], figures


def memory(epochs: int) -> tuple[str, list[Any]]:
    """A table and the figures: the process's bytes and each worker's after each epoch."""
    with tempfile.TemporaryDirectory() as place:
        settings = ["model.model_name=test_resnet", "transform.input_size=[3, 32, 32]", "data.workers=2"]
        settings += [f"scheduler.num_epochs={epochs}", "run.val_interval=1", f"run.output_dir={place}/run"]
        held = [json.loads(line) for line in found(AFTER_EPOCHS, "recipes/digits_resnet10.yaml", *settings)]
    rows = [
        (number, f"{own / 2**20:.1f}", ", ".join(f"{one / 2**20:.1f}" for one in workers))
        for number, (own, workers) in enumerate(held, start=1)
        if number in (1, 2, 5, 10, 15, epochs)
    ]
    return table(("after epoch", "process, MiB", "workers, MiB"), rows), held


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=("steps", "memory"))
    parser.add_argument("--output", type=Path, help="a folder for overhead.md and overhead.json")
    args = parser.parse_args(argv)
    tables: list[str] = []
    figures: dict[str, Any] = {}
    if args.only in (None, "steps"):
        tables, figures["steps"] = steps(args.repeats)
    if args.only in (None, "memory"):
        page, figures["memory"] = memory(args.epochs)
        tables.append(page)
    report(f"What safety costs; n = {args.repeats}", "overhead", tables, figures, args.output)


if __name__ == "__main__":
    main()
