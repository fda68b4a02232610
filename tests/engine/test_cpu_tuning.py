"""OpenMP and glibc settings, measured in fresh processes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
from command_runs import command, write_recipe

from cskd_hf.engine.cpu_tuning import limit_openmp_spinning

# Prints the page faults of ten successive 48 MB arrays, without the first two.
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

glibc_only = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def faults(tuned: bool, **variables: str) -> int:
    program = FAULTS.format("keep_freed_memory()" if tuned else "")
    # Huge pages would change the count, and may be unavailable.
    environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0", **variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return sum(map(int, done.stdout.split()))


@glibc_only
def test_freed_memory_is_reused_without_a_page_fault():
    assert faults(tuned=False) > 8 * 1000
    assert faults(tuned=True) < 8


@glibc_only
def test_malloc_settings_of_the_environment_win():
    assert faults(tuned=True, MALLOC_MMAP_MAX_="65536", MALLOC_MMAP_THRESHOLD_="1000000") > 8 * 1000


@pytest.mark.parametrize(
    ("variables", "spin_count"),
    [
        ({}, "10000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"OMP_WAIT_POLICY": "active"}, None),
    ],
    ids=str,
)
def test_idle_threads_spin_briefly_unless_the_environment_says_otherwise(monkeypatch, variables, spin_count):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    limit_openmp_spinning()
    assert os.environ.get("GOMP_SPINCOUNT") == spin_count


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses GNU OpenMP on Linux only")
def test_training_limits_spinning_before_torch_is_imported(tmp_path):
    """OpenMP reads its settings once, when torch loads it, and prints them here."""
    done = command(write_recipe(tmp_path / "run.yaml", tmp_path / "nowhere"), OMP_DISPLAY_ENV="verbose")
    assert done.status == 2, done.stderr
    assert "GOMP_SPINCOUNT = '10000'" in done.stderr
