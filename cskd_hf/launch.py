"""Missing runs, trained one after another, each by `cskd_hf.train` in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess

from cskd_hf.errors import UserError
from cskd_hf.experiments import Run, RunKey
from cskd_hf.results.collect import find_run


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
        return process.wait(), _last_words(said)
    except BaseException:
        # A terminal's Ctrl-C has reached it too; a signal to this process alone has not.
        process.terminate()
        process.wait()
        raise


def _last_words(said: Sequence[str]) -> str:
    errors = [line.removeprefix("error: ").strip() for line in said if line.startswith("error: ")]
    spoken = [line.strip() for line in said if line.strip()]
    return errors[0] if errors else spoken[-1] if spoken else "it said nothing"


# What costs a training seconds before its first step, most of its time where it is only tried out.
_SLOW_IMPORTS = [
    *("accelerate", "datasets", "matplotlib.figure", "sklearn.datasets", "timm", "torch", "torchvision"),
    *("cskd_hf.engine.build", "cskd_hf.publish", "cskd_hf.results.figures", "cskd_hf.results.run_folder"),
]


def start_forked(arguments: Sequence[str], log: str) -> ForkServerProcess:
    """Start what `python -m cskd_hf.train ARGUMENTS` does in a process forked from one that has imported everything.

    Args:
        log: the file that takes its stdout and stderr.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_SLOW_IMPORTS)
    process = context.Process(target=_forked, args=(list(arguments), log))
    process.start()
    return process


def _forked(arguments: list[str], log: str) -> None:
    from cskd_hf import train
    from cskd_hf.errors import run_command

    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    multiprocessing.set_start_method(None, force=True)  # else the loader's workers start as this process did
    run_command(lambda: train.main(arguments))


def train_forked(command: Sequence[str]) -> tuple[int, str]:
    """`run_missing`'s `train` for runs of seconds; their output comes when each has ended."""
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as log:
        process = start_forked(command[list(command).index("cskd_hf.train") + 1 :], log.name)
        process.join()
        said = log.readlines()
    sys.stderr.writelines(said)
    assert process.exitcode is not None
    return process.exitcode, _last_words(said)
