"""OpenMP and glibc settings, observed in processes that set them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from command_runs import command, write_recipe

from cskd_hf.engine.cpu_tuning import limit_openmp_spinning

# Faults of pages, for ten arrays of 48 MB one after another; the first two are not counted.
FAULTS = """
import resource
import numpy as np
from cskd_hf.engine.cpu_tuning import keep_freed_memory
{}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48_000_000, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[faults() for _ in range(10)][2:])
"""

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")


def faults(ask: bool, **variables: str) -> int:
    program = FAULTS.format("keep_freed_memory()" if ask else "")
    # Without NumPy's asking for huge pages, of which there may be none to be had.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return sum(map(int, done.stdout.split()))


@glibc_only
def test_freed_memory_is_reused_without_a_page_fault():
    assert faults(ask=False) > 8 * 1000
    assert faults(ask=True) < 8


@glibc_only
def test_malloc_settings_of_the_environment_win():
    assert faults(ask=True, MALLOC_MMAP_MAX_="65536", MALLOC_MMAP_THRESHOLD_="1000000") > 8 * 1000


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=str,
)
def test_idle_threads_spin_briefly_unless_the_environment_says_otherwise(monkeypatch, said, found):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    limit_openmp_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == found


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux")
def test_training_limits_spinning_before_torch_is_imported(tmp_path):
    """OpenMP says what it read when it is loaded, which torch does."""
    done = command(write_recipe(tmp_path / "run.yaml", tmp_path / "nowhere"), OMP_DISPLAY_ENV="verbose")
    assert done.status == 2, done.stderr
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr
