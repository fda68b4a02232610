"""The image formats that can be read here: Pillow's, and HEIC if pillow-heif is installed.

Importing this module registers HEIC with Pillow, in loader processes, too.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from functools import cache

from PIL import Image

with suppress(ImportError):
    from pillow_heif import register_heif_opener

    register_heif_opener()

# Photo formats that need another package or a newer Pillow.
DECODERS = {
    ".heic": "readable after pip install pillow-heif",
    ".heif": "readable after pip install pillow-heif",
    ".avif": "readable after pip install -U pillow",
}


def is_file_or_missing(path: str) -> bool:
    """Whether opening the path cannot block: not a pipe, socket, device or folder."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a null byte in the path
        return True


@cache
def readable_extensions() -> frozenset[str]:
    """Extensions, in lower case, of the files that are read as images."""
    kinds = Image.registered_extensions().items()
    return frozenset(extension for extension, kind in kinds if kind in Image.OPEN)
