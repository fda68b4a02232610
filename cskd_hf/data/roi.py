"""Decode only a region of a JPEG, if libjpeg-turbo 3 or later is installed; optional.

Decoding is exact (see `decode.py`): at the edge of the region the decoder lacks the neighbours that it interpolates
colours from, so 16 more pixels are decoded on each side and cut off. The file below the region is not read: the caller
has to know that it is complete.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
from pathlib import Path

import numpy as np

enabled = True  # False to compare

MARGIN = 16
MAX_SHARE = 0.85  # of the image; a larger region saves nothing
# Constants of turbojpeg.h
_INIT_DECOMPRESS, _STOP_ON_WARNING, _SUBSAMPLING, _RGB = 1, 0, 4, 0
# Width and height of the blocks (MCUs) by subsampling: 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_BLOCKS = ((8, 8), (16, 8), (16, 16), (8, 8), (8, 16), (32, 8), (8, 32))


class _Region(ctypes.Structure):
    _fields_ = [("x", ctypes.c_int), ("y", ctypes.c_int), ("w", ctypes.c_int), ("h", ctypes.c_int)]


_decoder = threading.local()  # one per thread


def available() -> bool:
    """Whether the library was found."""
    return enabled and _library() is not None


def description() -> str:
    """The library's file name, or "none"."""
    library = _library()
    return "none" if library is None else str(library._name)


def is_worth_it(size: tuple[int, int], box: tuple[int, int, int, int]) -> bool:
    """Whether enough of an image (height, width) lies outside a region (top, left, height, width) to save time."""
    return (box[2] + 2 * MARGIN) * (box[3] + 2 * MARGIN) < MAX_SHARE * size[0] * size[1]


def decode_region(data: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray | None:
    """(height, width, 3) uint8, contiguous; None if the decoder complains.

    Args:
        size: (height, width) of the image; `box`: top, left, height, width.
    """
    library = _library()
    assert library is not None
    if not hasattr(_decoder, "handle"):  # the first call in this thread
        _decoder.handle = library.tj3Init(_INIT_DECOMPRESS)
        library.tj3Set(_decoder.handle, _STOP_ON_WARNING, 1)
    handle = _decoder.handle
    whole = _Region(0, 0, 0, 0)
    if library.tj3SetCroppingRegion(handle, whole) or library.tj3DecompressHeader(handle, data, len(data)):
        return None
    layout = library.tj3Get(handle, _SUBSAMPLING)
    if not 0 <= layout < len(_BLOCKS):
        return None
    block_width, block_height = _BLOCKS[layout]
    top, left, height, width = box
    first_row = max(0, top - MARGIN) // block_height * block_height
    first_column = max(0, left - MARGIN) // block_width * block_width
    rows = min(size[0], top + height + MARGIN) - first_row
    columns = min(size[1], left + width + MARGIN) - first_column
    pixels = np.empty((rows, columns, 3), dtype=np.uint8)
    if library.tj3SetCroppingRegion(handle, _Region(first_column, first_row, columns, rows)):
        return None
    if library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 3 * columns, _RGB):
        return None
    top, left = top - first_row, left - first_column
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


@functools.cache
def _library() -> ctypes.CDLL | None:
    for name in _names():
        try:
            return _declared(ctypes.CDLL(name))  # CDLL releases the GIL during calls
        except (OSError, AttributeError):  # missing, or older than version 3
            continue
    return None


def _names() -> list[str]:
    """Candidates: the environment's library (conda), the one in the wheel `turbojpeg`, the system's."""
    name = {"darwin": "libturbojpeg.0.dylib", "win32": "turbojpeg.dll"}.get(sys.platform, "libturbojpeg.so.0")
    own = Path(sys.prefix) / "lib" / name
    wheels = [str(file) for entry in sys.path for file in sorted(Path(entry).glob("turbojpeg.libs/libturbojpeg*"))]
    return [*([str(own)] if own.exists() else []), *wheels, name]


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    buffer = (ctypes.c_char_p, ctypes.c_size_t)
    library.tj3Init.restype, library.tj3Init.argtypes = ctypes.c_void_p, (ctypes.c_int,)
    library.tj3Set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    library.tj3Get.argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.tj3DecompressHeader.argtypes = (ctypes.c_void_p, *buffer)
    library.tj3SetCroppingRegion.argtypes = (ctypes.c_void_p, _Region)
    library.tj3Decompress8.argtypes = (ctypes.c_void_p, *buffer, ctypes.c_void_p, ctypes.c_int, ctypes.c_int)
    return library
