"""The error for everything that a user can fix."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message names what was read, where, and what to write instead.

    Commands print it without a traceback and exit with status 2. Any other exception is a bug and shows its traceback.
    """


class ImageError(UserError):
    """An unreadable image."""


RANK_0_FIRST = 5.0
"""Seconds that another rank waits before it prints an error of its own."""


def one_line(error: object) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).split())


def is_out_of_host_memory(error: BaseException) -> bool:
    """Whether NumPy, Python or torch's CPU allocator, which has no error class of its own, got no memory."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def is_out_of_device_memory(error: BaseException) -> bool:
    """Whether torch's allocator, or a library below it, got no device memory; only the former has an error class."""
    text = str(error)
    return type(error).__name__ == "OutOfMemoryError" or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "STATUS_ALLOC_FAILED" in text)
    )


def is_broken_collective(error: BaseException) -> bool:
    """Whether a collective failed because of another rank; gloo raises a plain RuntimeError for that."""
    by_torch = any(kind.__name__ == "DistError" for kind in type(error).__mro__)
    return by_torch or (isinstance(error, RuntimeError) and re.search(r"\bgloo\b", str(error), re.I) is not None)


def _is_rank_0() -> bool:
    """Whether this is rank 0 of a launch. In a single process, RANK is left over from another launch."""
    return os.environ.get("RANK", "0") == "0" or os.environ.get("WORLD_SIZE", "1") == "1"


def exit_on_signals() -> None:
    """From here on SIGINT, SIGTERM and SIGUSR1 end the process with one line; training replaces the handlers.

    An exception would not do: raised within an import or a destructor, it is printed with a traceback or swallowed.
    """

    def exit_at_once(number: int, _: object) -> None:
        if _is_rank_0():
            line = f"stopped by {signal.Signals(number).name}; rerun the same command to resume\n"
            os.write(2, line.encode())  # print may be what was interrupted
        os._exit(130 if number == signal.SIGINT else 143)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, exit_at_once)


def run_command(command: Callable[[], int]) -> None:
    """Run a command's `main` and exit: with its status, 2 after a `UserError`, 130 after an interrupt.

    A reader of standard output that ends early, such as head, ends the command with one line and status 141.
    """
    try:
        status = command()
        sys.stdout.flush()
        gc.collect()  # modules in reference cycles keep the threads of a destroyed process group alive
        sys.exit(status)
    except UserError as error:
        # torch prefixes an error from a loader worker with the worker's traceback.
        _print_error(re.split(rf"{re.escape(__name__)}\.\w+Error: ", str(error))[-1])
        sys.exit(2)
    except RuntimeError as error:
        line = _explain_torch(error)
        if line is None:
            raise
        _print_error(line)
        sys.exit(1)
    except BrokenPipeError:
        try:
            print(flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more
            print("error: the reader of standard output has ended", file=sys.stderr)
            sys.exit(141)
        raise  # another pipe, such as a worker's
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _explain_torch(error: RuntimeError) -> str | None:
    """One line for the user about an error of torch's, from any command; None for a bug."""
    if is_out_of_device_memory(error):
        return "the device is out of memory: lower data.batch_size (predict: --batch-size), or free the device"
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        # BackendCompilerFailed wraps the compiler's error, which may be the whole traceback of another process.
        inner = getattr(error, "inner_exception", error)
        cause = (str(inner).strip() or repr(inner)).splitlines()[-1]
        return f"run.compile: torch cannot compile: {cause}; install what it lacks, or write run.compile=false"
    if is_broken_collective(error):
        reason = str(error).strip().partition("\n")[0]  # torch adds its stack frames
        return f"no connection to another process: {reason}; see its error; if it printed none, rerun the same command"
    return None


def _print_error(message: str) -> None:
    """Print an error. Ranks usually fail alike: rank 0 prints first, and the launcher then stops the others."""
    at = "error"
    if not _is_rank_0():
        time.sleep(RANK_0_FIRST)
        at = f"error: process {os.environ['RANK']} on {socket.gethostname()}"
    print("\n".join(f"{at}: {line}" for line in message.strip().splitlines()), file=sys.stderr, flush=True)
