"""Kill a training run with SIGKILL at random moments, and compare its results with those of an uninterrupted run.

    python scripts/torture.py --kills 50
    python scripts/torture.py --kills 20 --processes 2 --output torture.md

The command is the real one, on the embedded digits with timm's smallest ResNet and a checkpoint every other step. One
process is forked from one that has imported everything; two are started by torchrun and timed from their last line
before the first step. Kills are uniform between the start and 5 % after the run would end, so they hit training,
evaluation, checkpoints and the writing of results alike. When a run finishes, the next one starts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from forkserver import start_forked

from cskd_hf.runs.folder import read_metrics
from cskd_hf.runs.summary import read_summary

SETTINGS = (
    "model.model_name=test_resnet",
    "transform.input_size=[3, 32, 32]",
    "scheduler.num_epochs=4",
    "scheduler.decay_milestones=[3]",
    "run.checkpoint_steps=2",
    "run.val_interval=1",
    "data.workers=1",
    "data.batch_size=16",
)
LAST_LINE = "  device     "  # before the first step
TIMING = ("images_per_second", "data_wait_share", "seconds")


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        run: number of the run it hit.
        moment: seconds after the start.
        left: the state of the run folder.
        resumed_at: where the next start resumed.
    """

    run: int
    moment: float
    left: str
    resumed_at: str


def torture(folder: Path, num_kills: int, processes: int, seed: int) -> tuple[list[Kill], dict[int, list[str]]]:
    """Train below `folder`, killing so many times.

    Returns:
        The kills, and for each finished run the results that differ from those of an uninterrupted run.
    """
    generator = random.Random(seed)
    start(folder / "warm-up", processes, 0)  # starts the process that the others are forked from
    status, output, duration = start(folder / "uninterrupted", processes, None)
    if status != 0:
        raise SystemExit(f"error: an uninterrupted run failed:\n{output}")

    kills: list[Kill] = []
    differences: dict[int, list[str]] = {}
    run, pending = 0, None
    while len(kills) < num_kills or run not in differences:
        run_folder = folder / f"run{run}"
        is_last = len(kills) >= num_kills
        moment = None if is_last else generator.uniform(0, 1.05 * duration)
        status, output, _ = start(run_folder, processes, moment)
        if pending is not None:  # this start resumes after the previous kill
            kills[-1] = Kill(*pending, resumed_at(output))
            pending = None
        if status is None:
            assert moment is not None
            pending = (run, moment, describe(run_folder))
            kills.append(Kill(*pending, "not restarted"))
        elif status == 0 and (run_folder / "summary.json").is_file():
            differences[run] = compare(run_folder, folder / "uninterrupted")
            run += not is_last
        else:
            raise SystemExit(f"error: the command failed without a kill:\n{output}")
    return kills, differences


def arguments(folder: Path) -> list[str]:
    return ["recipes/digits_resnet10.yaml", *SETTINGS, f"run.output_dir={folder}"]


def torchrun(folder: Path, processes: int, log: IO[str]) -> subprocess.Popen[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [f"--nproc_per_node={processes}", f"--master_port={port}", "-m", "cskd_hf.train"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, *arguments(folder)]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def start(folder: Path, processes: int, moment: float | None) -> tuple[int | None, str, float]:
    """Start the command and kill it after `moment` seconds, unless None.

    Returns:
        Its exit status, None if it was killed; its output; its duration in seconds.
    """
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.monotonic()
        if processes == 1:
            forked = start_forked(arguments(folder), log.name)
            forked.join(moment)
            pid, status = forked.pid, forked.exitcode
        else:
            process = torchrun(folder, processes, log)
            while process.poll() is None and LAST_LINE not in Path(log.name).read_text():
                time.sleep(0.02)
            began = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            pid, status = process.pid, process.returncode
        duration = time.monotonic() - began
        if status is None:
            assert pid is not None
            for descendant in process_tree(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(descendant, signal.SIGKILL)
            forked.join() if processes == 1 else process.wait()
        return status, Path(log.name).read_text(), duration


def process_tree(pid: int) -> list[int]:
    """A process and its descendants; killing its group is not enough, as torchrun gives each worker a group."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    return [pid, *(descendant for child in children for descendant in process_tree(int(child)))]


def describe(folder: Path) -> str:
    """The state in which a kill left a run folder."""
    if not (folder / "recipe.yaml").is_file():
        return "nothing"
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    state = [checkpoints[-1].name if checkpoints else "no checkpoint"]
    if list((folder / "checkpoints").glob(".partial-*")):
        state.append("a partial checkpoint")
    if (folder / "summary.json").is_file():
        state.append("results")
    elif (folder / "predictions.safetensors").is_file():
        state.append("partial results")
    return ", ".join(state)


def resumed_at(output: str) -> str:
    for line in output.splitlines():
        if line.startswith("resuming at "):
            return line.removeprefix("resuming at ")
        if line.endswith("is finished; its result:"):
            return "finished"
    return "start" if LAST_LINE in output else "killed before resuming"


def compare(folder: Path, reference: Path) -> list[str]:
    """The results of two runs that differ, timing and names aside."""
    different = [
        name
        for name in ("model/model.safetensors", "predictions.safetensors")
        if (folder / name).read_bytes() != (reference / name).read_bytes()
    ]
    if metrics_of(folder) != metrics_of(reference):
        different.append("metrics.jsonl")
    summary, expected = (read_summary(each).model_dump(exclude={"throughput", "name"}) for each in (folder, reference))
    if summary != expected:
        different.append("summary.json")
    return different


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in TIMING} for line in read_metrics(folder)]


def as_markdown(kills: Sequence[Kill], differences: dict[int, list[str]]) -> str:
    lines = ["| kill | run | after | left in the run folder | next start resumed at | final results equal |"]
    lines.append("|---|---|---|---|---|---|")
    for number, kill in enumerate(kills, start=1):
        verdict = ", ".join(differences[kill.run]) + " differ" if differences[kill.run] else "yes"
        cells = (number, kill.run + 1, f"{kill.moment:.2f} s", kill.left, kill.resumed_at, verdict)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2), help="ranks of the run (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        kills, differences = torture(Path(folder), args.kills, args.processes, args.seed)
    text = as_markdown(kills, differences)
    print(text)
    num_different = sum(map(bool, differences.values()))
    print(f"\n{len(kills)} kills in {len(differences)} runs of {args.processes} processes; {num_different} runs differ")
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 1 if num_different else 0


if __name__ == "__main__":
    sys.exit(main())
