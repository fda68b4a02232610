"""One thread a test process: the tests' networks are too small for more, and several processes share the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the commands that tests start
