"""Missing runs, trained one after another, each by `cskd_hf.train` in a process of its own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run, RunKey
from cskd_hf.paper.find import find_run


def launcher_prefix(launcher: str | None) -> list[str]:
    """What stands before `-m cskd_hf.train`: this Python, or the words of a launcher.

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
        raise UserError("--launcher: nothing in it; write for example --launcher 'accelerate launch'")
    return words


def require_program(prefix: Sequence[str]) -> list[str]:
    """The prefix with its program's full path, which may lie beside this Python, in an environment not activated.

    Raises:
        UserError: there is no such program on this machine.
    """
    program = shutil.which(prefix[0]) or shutil.which(prefix[0], path=os.path.dirname(sys.executable))
    if program is None:
        raise UserError(f"--launcher: no program {prefix[0]!r} on this machine; for others print --commands")
    return [program, *prefix[1:]]


def command_of(run: Run, prefix: Sequence[str]) -> list[str]:
    return [*prefix, "-m", "cskd_hf.train", f"recipes/{run.recipe}.yaml", *run.overrides]


def run_missing(
    runs: Mapping[RunKey, Run],
    prefix: Sequence[str],
    train: Callable[[Sequence[str]], tuple[int, str]] | None = None,
) -> dict[RunKey, str]:
    """Train every run that is not finished; what fails does not stop the others.

    The runs' own output goes to stderr.

    Args:
        train: runs a command; gives its exit status and its last words. None: in a process started anew.

    Returns:
        Why each run that is still missing is missing, on one line.
    """
    train = _train if train is None else train
    failures: dict[RunKey, str] = {}
    for number, (key, run) in enumerate(runs.items(), start=1):
        found = find_run(run)  # now, not at the start: others may train beside this command
        if found.status == "finished":
            continue
        said = f"[{number}/{len(runs)}] {run.folder}"
        if not found.trainable:
            failures[key] = found.describe(run)
        elif run.teacher is not None and run.teacher in failures:
            failures[key] = f"its teacher {runs[run.teacher].folder} is missing"
        else:
            print(f"{said}: {shlex.join(command_of(run, prefix))}", file=sys.stderr, flush=True)
            status, last_words = train(command_of(run, prefix))
            if status:
                failures[key] = f"exit status {status}: {last_words}"
            elif find_run(run).status != "finished":
                failures[key] = f"exit status 0, but {find_run(run).describe(run)}"
        if key in failures:
            print(f"{said}: {failures[key]}", file=sys.stderr, flush=True)
    return failures


def _train(command: Sequence[str]) -> tuple[int, str]:
    """Exit status, and the error line, else the last line, of what it said."""
    said: list[str] = []
    process = subprocess.Popen(
        command,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},  # into a pipe Python would keep its lines for minutes
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
            said.append(line)
        return process.wait(), last_words(said)
    except BaseException:
        # A terminal's Ctrl-C has reached it too; a signal to this process alone has not.
        process.terminate()
        process.wait()
        raise


def last_words(said: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ").strip() for line in said if line.startswith("error: ")]
    spoken = [line.strip() for line in said if line.strip()]
    return errors[0] if errors else spoken[-1] if spoken else "it said nothing"
