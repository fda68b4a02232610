"""Every benchmark, one after another, each in a process of its own: under 15 minutes on two idle cores.

    python scripts/bench/run_all.py [--output bench] [--only step start ...]

Each prints its page and leaves it in the folder, as Markdown and JSON; together.md holds all pages. A benchmark that
fails is named at the end, and the others run all the same (exit status 1). What each command measures, and how to ask
it for more, is said by its own --help.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Repeats such that all take some ten minutes. The step twice: a compiled one takes two minutes to be made on a CPU.
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
    parser.add_argument("--output", type=Path, default=Path("bench"))
    parser.add_argument("--only", nargs="+", choices=list(BENCHES), default=list(BENCHES))
    args = parser.parse_args(argv)

    args.output.mkdir(parents=True, exist_ok=True)
    pages, failed = [], []
    for name in args.only:
        script, *settings = BENCHES[name]
        print(f"== {name}", file=sys.stderr, flush=True)
        began = time.perf_counter()
        command = [sys.executable, str(HERE / script), *settings, "--output", str(args.output)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        print(f"== {name}: {time.perf_counter() - began:.0f} s, status {done.returncode}", file=sys.stderr, flush=True)
        pages.append(done.stdout)
        if done.returncode:
            failed.append(name)
    (args.output / "together.md").write_text("\n".join(pages), encoding="utf-8")
    for name in failed:
        print(f"error: {name} failed; see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
