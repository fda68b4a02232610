"""One of this package's commands, and then the names of the threads that its process still has.

    torchrun --nproc_per_node=2 last_threads.py OUT MODULE ARGUMENTS

Writes OUT/RANK, a name a line, as Linux tells them.
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
    gc.disable()  # else cycles go by chance
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        names = [thread.joinpath("comm").read_text().strip() for thread in Path("/proc/self/task").iterdir()]
        Path(out, os.environ["RANK"]).write_text("\n".join(names))
