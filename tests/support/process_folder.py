"""A temporary folder for the lifetime of a test process."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def process_folder(prefix: str = "tmp") -> Path:
    """Removed when this process exits.

    Not a `TemporaryDirectory` that only atexit refers to: forked workers of Python 3.13 clear their atexit handlers,
    which frees the object, which removes the folder.
    """
    folder = tempfile.mkdtemp(prefix=prefix)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
