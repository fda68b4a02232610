"""The cost of checkpoints and signal handling per step, and memory over 20 epochs; start.py measures restarts.

    python scripts/bench/overhead.py [--repeats 5] [--epochs 20]

Steps: CS-KD of ResNet-18 on 32 pairs of 64-px images, a small step that makes every share large; after each, the
agreement whether to stop, on one process and on two by torchrun, and a complete checkpoint, as a run writes one per
epoch by default.

Memory: the resident set of a run and of its workers, read after each epoch of the training command.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from reporting import bench_parser, report, spread, table

STEPS = """
import json, sys, tempfile, time
from pathlib import Path
import timm, torch
from accelerate import Accelerator
from cskd_hf.runs.checkpoint import save_checkpoint
from cskd_hf.engine.failures import check_weights
from cskd_hf.runs.progress import Progress
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.stopping import StopRequest
from cskd_hf.methods import CSKD
from cskd_hf.batch import Batch

repeats = int(sys.argv[1])
accelerator = Accelerator(cpu=True)
model = timm.create_model("resnet18", num_classes=200)
objective = Objective(CSKD(), model)
optimizer = torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
objective, optimizer = accelerator.prepare(objective, optimizer)
batch = Batch(torch.randn(64, 3, 64, 64), torch.randint(200, (32,)).repeat(2), torch.arange(64))
results = {"processes": accelerator.num_processes, "step": [], "agree": [], "save": []}
with StopRequest(accelerator) as stop, tempfile.TemporaryDirectory() as folder:
    for number in range(repeats + 1):
        began = time.perf_counter()
        accelerator.backward(objective(batch)["loss"])
        optimizer.step()
        optimizer.zero_grad()
        results["step"].append(time.perf_counter() - began)
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        for _ in range(1000):
            stop.agreed()
        results["agree"].append((time.perf_counter() - began) / 1000)
        accelerator.wait_for_everyone()
        began = time.perf_counter()
        check_weights(model, None, number)
        if accelerator.is_main_process:
            save_checkpoint(Path(folder), model, optimizer, None, Progress(step=number), "", keep=2)
            results["bytes"] = sum(file.stat().st_size for file in next(Path(folder).iterdir()).iterdir())
        accelerator.wait_for_everyone()
        results["save"].append(time.perf_counter() - began)
if accelerator.is_main_process:
    print("RESULT", json.dumps(results))
"""

AFTER_EPOCHS = """
import json, sys
import psutil
from cskd_hf import train
from cskd_hf.runs import folder as run_folder
append = run_folder.append_metrics
def append_and_report(folder, line):
    own = psutil.Process()
    workers = [child.memory_info().rss for child in own.children(recursive=True)]
    print("RESULT", json.dumps([own.memory_info().rss, workers]), flush=True)
    append(folder, line)
run_folder.append_metrics = append_and_report
train.main(sys.argv[1:])
"""

STEPS_PER_EPOCH = {"CUB-200": 188, "CIFAR-100": 391, "ImageNet": 5005}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def results(program: str, *arguments: object, processes: int = 1) -> list[Any]:
    """Run a program, with torchrun if `processes` > 1, and read the JSON values it prints after RESULT."""
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *(launcher if processes > 1 else []), file.name, *map(str, arguments)]
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return [json.loads(line[7:]) for line in done.stdout.splitlines() if line.startswith("RESULT ")]


def measure_steps(repeats: int) -> tuple[list[str], dict[str, Any]]:
    """Tables and measurements."""
    rows, shares, figures = [], [], {}
    for processes in (1, 2):
        (result,) = results(STEPS, repeats, processes=processes)
        assert result["processes"] == processes
        step, agree, save = (result[name][1:] for name in ("step", "agree", "save"))  # the first is a warm-up
        figures[f"{processes} processes"] = {"step": step, "agree": agree, "save": save, "bytes": result["bytes"]}
        rows.append((processes, spread(step), spread(agree, scale=1e6), spread(save)))
        median = statistics.median(step)
        shares.append(
            [processes, f"{100 * statistics.median(agree) / median:.4f} %"]
            + [f"{100 * statistics.median(save) / (steps * median):.2f} %" for steps in STEPS_PER_EPOCH.values()]
        )
    checkpoint = f"checkpoint of {result['bytes'] / 1e6:.0f} MB, s"
    epochs = [f"checkpoint, of {name}'s {steps} steps" for name, steps in STEPS_PER_EPOCH.items()]
    return [
        table(("processes", "step, s", "agreeing whether to stop, µs", checkpoint), rows),
        table(("processes", "agreeing, of a step", *epochs), shares),
    ], figures


def measure_memory(epochs: int) -> tuple[str, list[Any]]:
    """A table and the measurements: bytes of the process and of each worker after each epoch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = ["model.model_name=test_resnet", "transform.input_size=[3, 32, 32]", "data.workers=2"]
        settings += [f"scheduler.num_epochs={epochs}", "run.val_interval=1", f"run.output_dir={folder}/run"]
        sizes = results(AFTER_EPOCHS, "recipes/digits_resnet10.yaml", *settings)
    rows = [
        (number, f"{process / 2**20:.1f}", ", ".join(f"{worker / 2**20:.1f}" for worker in workers))
        for number, (process, workers) in enumerate(sizes, start=1)
        if number in (1, 2, 5, 10, 15, epochs)
    ]
    return table(("after epoch", "process, MiB", "workers, MiB"), rows), sizes


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, repeats=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--only", choices=("steps", "memory"))
    args = parser.parse_args(argv)
    tables: list[str] = []
    figures: dict[str, Any] = {}
    if args.only in (None, "steps"):
        tables, figures["steps"] = measure_steps(args.repeats)
    if args.only in (None, "memory"):
        page, figures["memory"] = measure_memory(args.epochs)
        tables.append(page)
    report(f"Checkpoints and signal handling; n = {args.repeats}", "overhead", tables, figures, args.output)


if __name__ == "__main__":
    main()
