"""Kill a training with SIGKILL at random moments, again and again, and compare what comes out with a run left alone.

    python scripts/torture.py --kills 50
    python scripts/torture.py --kills 20 --processes 2 --output torture.md

The command is the real one, on the embedded digits with timm's smallest ResNet, a checkpoint every other step. One
process is forked from one that has done the imports, which leave nothing to be found; two are torchrun's, and their
time is counted from when they have said what they are about to run. A moment is drawn, from a seed, between the start
and a little after the run would end: so it hits training, evaluation, checkpoints and the writing of the results
alike. When a run is done, before all kills are, another begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
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
SPOKEN = "  precision  "  # in the last of the lines before the first step
TIMING = ("images_per_second", "data_wait_share", "seconds")


@dataclass(frozen=True)
class Kill:
    """One kill and what became of it.

    Attributes:
        run: which run of how many it hit.
        moment: seconds after the start.
        found: what lay in the run folder.
        resumed: where the next start of the command went on.
    """

    run: int
    moment: float
    found: str
    resumed: str


def torture(place: Path, kills: int, processes: int, seed: int) -> tuple[list[Kill], dict[int, list[str]]]:
    """Kill so many times; returns the kills, and for each finished run the files that differ from a run left alone."""
    draw = random.Random(seed)
    start(place / "first", processes, None)  # which pays for the imports that the later ones are forked from
    status, said, whole = start(place / "alone", processes, None)
    if status != 0:
        raise SystemExit(f"error: a run left alone failed:\n{said}")

    table: list[Kill] = []
    different: dict[int, list[str]] = {}
    run, pending = 0, None
    while len(table) < kills or run not in different:
        folder = place / f"run{run}"
        last = len(table) >= kills
        moment = None if last else draw.uniform(0, 1.05 * whole)
        status, said, _ = start(folder, processes, moment)
        if pending is not None:  # this start shows what became of the kill before
            table[-1] = Kill(*pending, resumed_at(said))
            pending = None
        if status is not None:
            if status == 0 and (folder / "summary.json").is_file():
                different[run] = compare(folder, place / "alone")
                run += not last
                continue
            raise SystemExit(f"error: the command failed without a kill:\n{said}")
        assert moment is not None
        pending = (run, moment, describe(folder))
        table.append(Kill(*pending, "not started again"))
    return table, different


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
    """Start the command, kill it `moment` seconds later.

    Returns:
        Its exit status, None where it was killed, its words, and how many seconds it took.
    """
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.monotonic()
        if processes == 1:
            forked = start_forked(arguments(folder), log.name)
            forked.join(moment)
            pid, status = forked.pid, forked.exitcode
        else:
            process = torchrun(folder, processes, log)
            while process.poll() is None and SPOKEN not in Path(log.name).read_text():
                time.sleep(0.02)
            began = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            pid, status = process.pid, process.returncode
        took = time.monotonic() - began
        if status is None:
            assert pid is not None
            for member in family(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
            forked.join() if processes == 1 else process.wait()
        return status, Path(log.name).read_text(), took


def family(pid: int) -> list[int]:
    """A process and all below it: torchrun gives each of its workers a process group of its own."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        children = []
    return [pid, *(member for child in children for member in family(int(child)))]


def describe(folder: Path) -> str:
    """What a kill left, as somebody who opens the folder sees it."""
    if not (folder / "recipe.yaml").is_file():
        return "nothing yet"
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    found = [checkpoints[-1].name if checkpoints else "no checkpoint"]
    if list((folder / "checkpoints").glob(".partial-*")):
        found.append("half of the next one")
    if (folder / "summary.json").is_file():
        found.append("the results")
    elif (folder / "predictions.safetensors").is_file():
        found.append("half of the results")
    return ", ".join(found)


def resumed_at(said: str) -> str:
    for line in said.splitlines():
        if line.startswith("resuming at "):
            return line.removeprefix("resuming at ")
        if line.endswith("is finished; its result:"):
            return "finished already"
    return "the beginning" if SPOKEN in said else "killed again before that"


def compare(folder: Path, alone: Path) -> list[str]:
    """The results that differ from those of the run left alone, timing and names aside."""
    different = [
        name
        for name in ("model/model.safetensors", "predictions.safetensors")
        if (folder / name).read_bytes() != (alone / name).read_bytes()
    ]
    if metrics_of(folder) != metrics_of(alone):
        different.append("metrics.jsonl")
    if summary_of(folder) != summary_of(alone):
        different.append("summary.json")
    return different


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return {key: value for key, value in summary.items() if key not in ("throughput", "name")}


def as_markdown(table: Sequence[Kill], different: dict[int, list[str]]) -> str:
    rows = ["| kill | run | after | found in the folder | the next start went on at | equal in the end |"]
    rows.append("|---|---|---|---|---|---|")
    for number, kill in enumerate(table, start=1):
        verdict = ", ".join(different[kill.run]) + " differ" if different[kill.run] else "yes"
        rows.append(f"| {number} | {kill.run + 1} | {kill.moment:.2f} s | {kill.found} | {kill.resumed} | {verdict} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill a training at random moments and compare what comes out.")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--output", type=Path, help="also write the table there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        table, different = torture(Path(place), args.kills, args.processes, args.seed)
    text = as_markdown(table, different)
    print(text)
    bad = sum(map(bool, different.values()))
    print(f"\n{len(table)} kills in {len(different)} runs of {args.processes} processes; {bad} runs differ")
    if args.output is not None:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
