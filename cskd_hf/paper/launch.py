"""Train missing runs one after another, each by `cskd_hf.train` in its own process."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run, RunKey
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
    return [*prefix, "-m", "cskd_hf.train", f"recipes/{run.recipe}.yaml", *run.overrides]


def run_missing(
    runs: Mapping[RunKey, Run],
    prefix: Sequence[str],
    train: Callable[[Sequence[str]], tuple[int, str]] | None = None,
) -> dict[RunKey, str]:
    """Train every run that is not finished; a failure stops only the runs that need its teacher.

    Args:
        train: runs a command, sends its output to stderr, returns exit status and `failure_reason`. None: a subprocess.

    Returns:
        A one-line reason for each run that is still missing.
    """
    train = _train if train is None else train
    failures: dict[RunKey, str] = {}
    for number, (key, run) in enumerate(runs.items(), start=1):
        state = inspect_run(run)  # not once at the start: other processes may train meanwhile
        if state.status == "finished":
            continue
        progress = f"[{number}/{len(runs)}] {run.folder}"
        if not state.trainable:
            failures[key] = state.describe(run)
        elif run.teacher in failures:
            failures[key] = f"its teacher {runs[run.teacher].folder} is missing"
        else:
            command = command_of(run, prefix)
            print(f"{progress}: {shlex.join(command)}", file=sys.stderr, flush=True)
            status, reason = train(command)
            if status:
                failures[key] = f"exit status {status}: {reason}"
            elif (state := inspect_run(run)).status != "finished":
                failures[key] = f"exit status 0, but {state.describe(run)}"
        if key in failures:
            print(f"{progress}: {failures[key]}", file=sys.stderr, flush=True)
    return failures


def _train(command: Sequence[str]) -> tuple[int, str]:
    output: list[str] = []
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},  # Python buffers writes to a pipe for minutes
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stderr.write(line)
            sys.stderr.flush()
            output.append(line)
        return process.wait(), failure_reason(output)
    except BaseException:
        # Ctrl-C in a terminal reaches the child too; a signal sent to this process alone does not.
        process.terminate()
        process.wait()
        raise


def failure_reason(output: Sequence[str]) -> str:
    """The first error line of a command's output, else its last line."""
    lines = [line.strip() for line in output if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors[:1] or lines[-1:] or ["no output"])[0]
