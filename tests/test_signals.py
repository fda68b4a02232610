"""A signal while the training command starts ends it with one line, and so does a reader that ends early."""

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


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [("lambda: print('x' * 10**6)", 141, "error"), ("lambda: os.write(open_pipe, b'x')", 1, "BrokenPipeError")],
)
def test_a_reader_that_ends_early_is_one_line(command, status, error):
    code = "import os; from cskd_hf.errors import run_command; end, open_pipe = os.pipe(); os.close(end); "
    with subprocess.Popen(
        [sys.executable, "-c", f"{code}run_command({command})"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        if status == 141:
            process.stdout.close()
        *others, last = process.stderr.read().splitlines()
    assert (process.returncode, last.partition(":")[0], others == []) == (status, error, status == 141)


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
