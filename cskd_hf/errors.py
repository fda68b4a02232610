"""The error for everything that a user can fix."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message names what was read, where, and what to write instead.

    Commands print it without a traceback and exit with status 2. Any other exception is a bug and shows its traceback.
    """


class ImageError(UserError):
    """Bad input that only one rank meets: an unreadable image in its shard."""


def one_line(error: object) -> str:
    """The text of an error without line breaks."""
    return " ".join(str(error).split())


def is_out_of_host_memory(error: BaseException) -> bool:
    """Whether NumPy, Python or torch's CPU allocator, which has no error class of its own, got no memory."""
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)


def _is_rank_0() -> bool:
    """Of the launcher's processes; a RANK that is left in the shell of a single process means nothing."""
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
        # All ranks read the same recipe and raise the same error; rank 0 prints it. Only ImageErrors differ.
        if _is_rank_0() or isinstance(error, ImageError):
            # torch prefixes an error from a loader worker with the worker's traceback.
            message = re.split(rf"{re.escape(__name__)}\.\w+Error: ", str(error))[-1]
            print("\n".join(f"error: {line}" for line in message.strip().splitlines()), file=sys.stderr)
        sys.exit(2)
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
