"""Check everything this project promises on a GPU: speed, memory, exactness, error messages.

    python scripts/gpu_check.py [--minutes 8] [--out DIR]
    python scripts/gpu_check.py --device cpu --quick          # the same script in a few minutes, without a GPU

Generates ImageNet-like JPEGs from photographs in installed packages; needs no network. The most valuable checks run
first, each in a process with a time limit: timings alone, the rest in parallel. A failed check does not stop the
others. Prints one table; DIR gets gpu_check.md, gpu_check.json and log.txt. Exit status 1 if a check fails.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
UNTESTED = (
    "NCCL, DDP over several GPUs, SyncBatchNorm",
    "a rank lost under NCCL: what is printed, and when",
    "several machines with GPUs",
)


class Check(NamedTuple):
    """A check of gpu/checks.py.

    Attributes:
        seconds: time limit.
        alone: nothing else may run, because it measures time.
    """

    name: str
    seconds: float
    alone: bool


CHECKS = (
    Check("versions", 60, True),
    Check("step_eager", 150, True),
    Check("step_compiled", 300, True),
    Check("command", 300, True),
    Check("gpu_tests", 240, False),
    Check("accumulation", 240, False),
    Check("resume_fp16", 200, False),
    Check("deterministic", 200, False),
    Check("digits", 240, False),
    Check("out_of_memory", 240, False),
    Check("two_ranks", 90, False),
    Check("step_compiled_pairs", 240, True),
    Check("step_reduce_overhead", 240, True),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="start no check after this many minutes (default: 8)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu_check"), metavar="DIR", help="results (default: gpu_check)"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[check.name for check in CHECKS], metavar="NAME", help="run only these checks"
    )
    parser.add_argument("--quick", action="store_true", help="tiny networks and few steps, to test the script itself")
    jobs = max(1, min(4, (os.cpu_count() or 1) // 4))
    parser.add_argument(
        "--jobs", type=int, default=jobs, help="checks to run in parallel (default: cores / 4, up to 4)"
    )
    args = parser.parse_args(argv)
    deadline = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        selected = [check for check in CHECKS if args.only is None or check.name in args.only]
        alone = [check for check in selected if check.alone]
        first, last = alone[:4], alone[4:]
        outcomes = [run(check, args, work, deadline) for check in first]
        with ThreadPoolExecutor(args.jobs) as pool:
            parallel = [check for check in selected if not check.alone]
            outcomes += pool.map(lambda check: run(check, args, work, deadline), parallel)
        outcomes += [run(check, args, work, deadline) for check in last]
        logs = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(work.glob("*.log"))]
    (args.out / "log.txt").write_text("\n".join(logs)[-4_000_000:], encoding="utf-8")
    rows = [row for outcome in outcomes for row in outcome]
    page = to_markdown(rows, args)
    print(page)
    (args.out / "gpu_check.md").write_text(page + "\n", encoding="utf-8")
    (args.out / "gpu_check.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 1 if any(row["verdict"] == "FAIL" for row in rows) else 0


def run(check: Check, args: argparse.Namespace, work: Path, deadline: float) -> list[dict[str, str]]:
    """The rows of one check, run in its own process."""
    limit = min(check.seconds, deadline - time.monotonic())
    if limit < 10:
        return [row(check.name, "", "not started: out of time", "skipped")]
    command = [sys.executable, str(HERE / "gpu" / "checks.py"), check.name]
    command += ["--device", args.device, "--work", str(work), *(["--quick"] if args.quick else [])]
    log, started = work / f"{check.name}.log", time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        print(f"##### {check.name}", file=file, flush=True)
        try:
            status = subprocess.run(command, env=environment(), stdout=file, stderr=file, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            status = None
    took = time.monotonic() - started
    print(f"{check.name}: {took:.0f} s", file=sys.stderr, flush=True)
    result = work / f"{check.name}.json"
    rows = json.loads(result.read_text(encoding="utf-8")) if result.is_file() else []
    if status is None:
        rows.append(row(check.name, "", f"killed after {limit:.0f} s", "FAIL"))
    elif status:
        last_line = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or [""])[-1]
        rows.append(row(check.name, "", f"exit status {status}: {last_line[:200]}", "FAIL"))
    return rows


def environment() -> dict[str, str]:
    """The checks import this package and the benchmarks."""
    paths = [str(HERE.parent), str(HERE / "bench"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def row(check: str, expected: str, found: str, verdict: str) -> dict[str, str]:
    return {"check": check, "expected": expected, "found": found, "verdict": verdict}


def to_markdown(rows: Sequence[dict[str, str]], args: argparse.Namespace) -> str:
    """The page: where and when, the table, what was not tested."""
    arguments = " ".join(arg for arg in (f"--device {args.device}", "--quick" if args.quick else "") if arg)
    lines = [
        "# GPU check",
        "",
        f"`python scripts/gpu_check.py {arguments} --minutes {args.minutes:g}`, {time.strftime('%Y-%m-%d')}",
        "",
        "| check | expected | found | verdict |",
        "|---|---|---|---|",
    ]
    lines += [f"| {r['check']} | {r['expected']} | {r['found']} | {r['verdict']} |".replace("\n", " ") for r in rows]
    return "\n".join([*lines, "", "Untested here, it needs more than one GPU: " + "; ".join(UNTESTED) + "."])


if __name__ == "__main__":
    sys.exit(main())
