"""One thread per test process, no GPU outside `-m gpu`, slow files first."""

from __future__ import annotations

import os

# Before torch is imported, and for the commands that tests start: the networks are tiny and processes share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["shared_fixtures"]

# Files that take a minute or more go first, so that none of them is left for one core at the end.
LONGEST = (
    *("test_plots.py", "test_methods_train.py", "test_faults.py"),
    *("test_publish.py", "test_publish_hub.py", "test_compile.py"),
)


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # results on a GPU differ, and several tests would share its memory


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
