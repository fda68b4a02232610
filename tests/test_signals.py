"""A signal while the training command starts ends it with one line, wherever the start is."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from command_runs import environment

SIGNAL_WITHIN_AN_IMPORT = """
import os, sys
module, number = sys.argv.pop(1), int(sys.argv.pop(1))

class Finder:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), number)

sys.meta_path.insert(0, Finder())
from cskd_hf.train import cli
cli()
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143)])
@pytest.mark.parametrize("module", ["pydantic", "torch"])
def test_a_signal_within_an_import_is_one_line(tmp_path, module, number, status):
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL_WITHIN_AN_IMPORT, module, str(int(number)), "recipes/digits_resnet10.yaml"],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr == f"stopped by {number.name}; rerun the same command to resume\n"
