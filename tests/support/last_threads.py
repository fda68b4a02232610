"""Run a command of this package, then write the names of the threads still alive in its process.

    torchrun --nproc_per_node=2 last_threads.py OUT MODULE ARGUMENTS

Writes OUT/RANK, one thread name per line, as in /proc.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    out, module = sys.argv[1:3]
    sys.argv = sys.argv[2:]
    gc.disable()  # else a collection might hide leaked threads
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        names = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
        Path(out, os.environ["RANK"]).write_text("\n".join(names))
