"""One thread a test process: the tests' networks are too small for more, and several processes share the cores."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the commands that tests start

pytest_plugins = ["shared_fixtures"]

# The files that take a minute or more. First, or else one of them is left for the end, and one core does nothing.
LONGEST = ("test_smoke.py", "test_faults.py", "test_distributed.py", "test_stopping.py")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
