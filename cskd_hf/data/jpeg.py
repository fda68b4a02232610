"""The fast path for ordinary JPEGs: libjpeg-turbo straight into an array.

Ordinary means grey, YCbCr or RGB that Pillow would not rotate. `ordinary_size` returns None for anything else,
`decode_region` at the slightest complaint of the decoder; the caller then falls back to Pillow, which alone decides
what is readable.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from cskd_hf.data import roi

try:
    import simplejpeg  # type: ignore[import-untyped]
except ImportError:  # no wheel for this machine: Pillow decodes everything, more slowly
    simplejpeg = None

ORIENTATION = 0x0112  # EXIF's tag
END = b"\xff\xd9"  # missing from a truncated file


def read_jpeg(image: Mapping[str, Any]) -> bytes | None:
    """The bytes of an image that starts like a JPEG; None for any other and for a file that cannot be read."""
    if simplejpeg is None:
        return None
    data = image["bytes"]
    if data is not None:
        return data if data[:2] == b"\xff\xd8" else None
    try:
        with open(image["path"], "rb") as file:
            start = file.read(2)
            return start + file.read() if start == b"\xff\xd8" else None
    except (OSError, TypeError, ValueError):  # no file, no path, or a null byte in the path
        return None


def ordinary_size(data: bytes, max_pixels: int | None) -> tuple[int, int] | None:
    """(height, width) from the header; None leaves the image to Pillow.

    Args:
        max_pixels: Pillow warns about or rejects larger images.
    """
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("YCbCr", "RGB", "Gray") or (max_pixels is not None and height * width > max_pixels):
        return None
    return None if _may_be_rotated(data) else (height, width)


def decode_region(data: bytes, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray | None:
    """(height, width, 3) uint8 of a region, contiguous; None if the decoder complains.

    Args:
        size: (height, width) of the image, from `ordinary_size`.
        box: top, left, height, width.
    """
    top, left, height, width = box
    if roi.available() and roi.is_worth_it(size, box) and data.endswith(END):
        return roi.decode_region(data, size, box)
    try:
        pixels = simplejpeg.decode_jpeg(data)  # strict: fails where libjpeg only warns
    except ValueError:
        return None
    if pixels.shape[:2] != size:
        return None
    # NumPy copies in this thread; torch would start others.
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def _may_be_rotated(data: bytes) -> bool:
    """Whether Pillow might rotate the image by its EXIF or XMP orientation; True if the segments are malformed."""
    at = 2
    while True:
        marker = data[at : at + 4]
        if len(marker) < 4 or marker[0] != 0xFF:
            return True
        kind = marker[1]
        if kind == 0xDA:  # start of scan
            return False
        if kind == 0xFF:  # padding
            at += 1
            continue
        if kind == 0x01 or 0xD0 <= kind <= 0xD9:  # markers without a length do not belong here
            return True
        length = marker[2] << 8 | marker[3]
        if kind == 0xE1 and _may_rotate(data[at + 4 : at + 2 + length]):
            return True
        at += 2 + length


def _may_rotate(segment: bytes) -> bool:
    if not segment.startswith(b"Exif\0\0"):
        return b"Orientation" in segment  # XMP
    tiff = segment[6:]
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return True
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, first)
        for entry in range(count):
            tag, kind, number = struct.unpack_from(order + "HHI", tiff, first + 2 + 12 * entry)
            if tag == ORIENTATION:
                (value,) = struct.unpack_from(order + "H", tiff, first + 2 + 12 * entry + 8)
                return (kind, number, value) != (3, 1, 1)
    except struct.error:
        return True
    return False
