"""One kind of error for everything a user can mend."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input: the message says what was read, where, and what to write instead.

    Commands print it without a traceback and exit with status 2; every other exception is our own mistake
    and keeps its traceback.
    """


class ImageError(UserError):
    """Bad input that only the process that met it knows of: an image in its share of the data."""


def run_command(command: Callable[[], int]) -> None:
    """Run a command's `main`; a `UserError` becomes lines on stderr and status 2, an interrupt one line and 130."""
    try:
        status = command()
        gc.collect()  # a module in a cycle keeps threads of a destroyed process group, see `end_training` in train.py
        sys.exit(status)
    except UserError as error:
        # Every process of a distributed run reads the same recipe and meets the same error: one of them says it.
        if os.environ.get("RANK", "0") == "0" or isinstance(error, ImageError):
            # One that was raised in a loader's worker arrives with that worker's traceback in front.
            message = re.split(rf"{re.escape(__name__)}\.\w+Error: ", str(error))[-1]
            print("\n".join(f"error: {line}" for line in message.strip().splitlines()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
