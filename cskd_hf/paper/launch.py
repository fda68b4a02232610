"""Train missing runs, one or several at a time, each by `cskd_hf.train` in its own process."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import inspect_run


def launcher_prefix(launcher: str | None) -> list[str]:
    """The command before `-m cskd_hf.train`: this Python, or the words of a launcher.

    Raises:
        UserError: the launcher cannot be split into words.
    """
    if launcher is None:
        return [sys.executable]
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"--launcher: read {launcher!r}: {error}") from None
    if not words:
        raise UserError("--launcher: empty; write for example --launcher 'accelerate launch'")
    return words


def require_program(prefix: Sequence[str]) -> list[str]:
    """The prefix with its program's full path, which may be next to this Python in an environment not activated.

    Raises:
        UserError: this machine has no such program.
    """
    program = shutil.which(prefix[0]) or shutil.which(prefix[0], path=os.path.dirname(sys.executable))
    if program is None:
        raise UserError(f"--launcher: no program {prefix[0]!r} on this machine; use --commands to run elsewhere")
    return [program, *prefix[1:]]


def command_of(run: Run, prefix: Sequence[str]) -> list[str]:
    return [*prefix, "-m", "cskd_hf.train", run.recipe, *run.overrides]


def run_missing(runs: Mapping[RunKey, Run], prefix: Sequence[str], jobs: int = 1) -> dict[RunKey, str]:
    """Train every run that is not finished; a failure stops only the runs that need its teacher.

    Args:
        runs: teachers before their students.
        jobs: runs at a time; each gets its share of the cores, unless OMP_NUM_THREADS is set.

    Returns:
        A one-line reason for each run that is still missing.
    """
    children = _Children(jobs)
    reasons: dict[RunKey, Future[str | None]] = {}

    def finish(number: int, key: RunKey) -> str | None:
        run, progress = runs[key], f"[{number}/{len(runs)}] {runs[key].folder}"
        state = inspect_run(run)  # not once at the start: other processes may train meanwhile
        reason: str | None
        if state.status == "finished":
            return None
        if not state.trainable:
            reason = state.describe(run)
        # The pool starts runs in order, so no student waits for a teacher behind it.
        elif run.teacher is not None and reasons[run.teacher].result() is not None:
            reason = f"its teacher {runs[run.teacher].folder} is missing"
        else:
            command = command_of(run, prefix)
            print(f"{progress}: {shlex.join(command)}", file=sys.stderr, flush=True)
            status, reason = children.train(command)
            if status:
                reason = f"exit status {status}: {reason}"
            else:
                state = inspect_run(run)
                reason = None if state.status == "finished" else f"exit status 0, but {state.describe(run)}"
        if reason is not None:
            print(f"{progress}: {reason}", file=sys.stderr, flush=True)
        return reason

    pool = ThreadPoolExecutor(jobs)
    try:
        for number, key in enumerate(runs, start=1):
            reasons[key] = pool.submit(finish, number, key)
        return {key: reason for key, future in reasons.items() if (reason := future.result()) is not None}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        children.stop()
        pool.shutdown()


class _Children:
    """Training processes, `jobs` at a time."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.environment = {"PYTHONUNBUFFERED": "1"}  # Python buffers writes to a pipe for minutes
        if jobs > 1:
            self.environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
        self.environment |= os.environ
        self.running: set[subprocess.Popen[str]] = set()
        self.stopped = False
        self.lock = threading.Lock()

    def train(self, command: Sequence[str]) -> tuple[int, str]:
        """Run a command with its output on stderr, named if there are several; exit status and `failure_reason`."""
        with self.lock:
            if self.stopped:
                return 1, "interrupted"
            process = subprocess.Popen(
                command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
            self.running.add(process)
        name = "" if self.jobs == 1 else f"{Path(command[-1]).name}: "  # the last override is the run folder
        output: list[str] = []
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(name + line)
            sys.stderr.flush()
            output.append(line)
        status = process.wait()
        with self.lock:
            self.running.discard(process)
        return status, failure_reason(output)

    def stop(self) -> None:
        """Terminate what still runs: Ctrl-C in a terminal reaches children too, a signal to this process does not."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.terminate()


def failure_reason(output: Sequence[str]) -> str:
    """The first error line of a command's output, else its last line."""
    lines = [line.strip() for line in output if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors[:1] or lines[-1:] or ["no output"])[0]
