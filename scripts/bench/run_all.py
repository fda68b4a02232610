"""Run every benchmark, one after another: under 15 minutes on two idle cores.

    python scripts/bench/run_all.py [--output bench] [--only step start ...]

Each prints its page and writes it to the output folder as Markdown and JSON; together.md has all pages. A benchmark
that fails is named at the end (exit status 1), and the others still run. The --help of each says what it measures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# As many repeats as take some ten minutes. Only the eager step: compiling takes two minutes on a CPU.
BENCHES: dict[str, tuple[str, ...]] = {
    "pairing": ("pairing.py",),
    "loader": ("loader.py", "--repeats", "9"),
    "step": ("step.py", "--modes", "eager", "--repeats", "25"),
    "end_to_end": ("end_to_end.py", "--quick"),
    "start": ("start.py", "--quick", "--shares", "95"),
    "overhead": ("overhead.py", "--only", "steps"),
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("bench"), help="folder for the pages (bench)")
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    args = parser.parse_args(argv)

    args.output.mkdir(parents=True, exist_ok=True)
    pages, failed = [], []
    for name in args.only:
        script, *settings = BENCHES[name]
        print(f"== {name}", file=sys.stderr, flush=True)
        start = time.perf_counter()
        command = [sys.executable, str(HERE / script), *settings, "--output", str(args.output)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        print(f"== {name}: {time.perf_counter() - start:.0f} s, status {done.returncode}", file=sys.stderr, flush=True)
        pages.append(done.stdout)
        if done.returncode:
            failed.append(name)
    (args.output / "together.md").write_text("\n".join(pages), encoding="utf-8")
    for name in failed:
        print(f"error: {name} failed, see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
