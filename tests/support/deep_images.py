"""PNG and TIFF files of any depth, written by hand from their specifications, independent of any encoder."""

from __future__ import annotations

import struct
import zlib

import numpy as np

_TIFF_KINDS = {"u": 1, "i": 2, "f": 3}


def png(array: np.ndarray, interlaced: bool = False) -> bytes:
    """A PNG of (H, W) or (H, W, channels) uint8 or uint16: grey, grey and alpha, RGB or RGBA."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    pixels = array.reshape(*array.shape[:2], -1)
    height, width, channels = pixels.shape
    depth, colour = 8 * array.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    big_endian = pixels.astype(f">u{array.itemsize}")
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first row, first column, row step, column step
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [big_endian[row::down, column::right] for row, column, down, right in passes]
    rows = b"".join(_filtered(part, row) for part in parts if part.shape[1] for row in range(len(part)))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def _filtered(pixels: np.ndarray, row: int) -> bytes:
    """A row under PNG's filters None, Sub and Up in turn, whose results depend on the bytes per pixel."""
    kind = row % 3
    data = np.frombuffer(pixels[row].tobytes(), np.uint8).reshape(pixels.shape[1], -1)
    before = np.zeros_like(data)
    if kind == 1:
        before[1:] = data[:-1]
    elif kind == 2:
        before = np.frombuffer(pixels[row - 1].tobytes(), np.uint8).reshape(data.shape)
    return bytes([kind]) + (data - before).tobytes()


def tiff(array: np.ndarray, order: str = "<", deflate: bool = False, cmyk: bool = False, orientation: int = 1) -> bytes:
    """A TIFF of (H, W) or (H, W, channels) in one strip: integers, signed or not, or floats."""
    values = array.astype(array.dtype.newbyteorder(order))
    height, width, channels = values.reshape(*values.shape[:2], -1).shape
    data = zlib.compress(values.tobytes()) if deflate else values.tobytes()
    photometric = 5 if cmyk else 2 if channels >= 3 else 1
    bits, kind = [8 * array.itemsize] * channels, [_TIFF_KINDS[array.dtype.kind]] * channels
    short, long = "H", "I"
    entries: list[tuple[int, str, list[int]]] = [
        (256, long, [width]),
        (257, long, [height]),
        (258, short, bits),
        (259, short, [8 if deflate else 1]),
        (262, short, [photometric]),
        (273, long, [0]),  # where the data begins, filled in below
        (274, short, [orientation]),
        (277, short, [channels]),
        (278, long, [height]),
        (279, long, [len(data)]),
        (339, short, kind),
    ]
    end = 8 + 2 + 12 * len(entries) + 4
    bodies = [struct.pack(f"{order}{len(numbers)}{kind}", *numbers) for _, kind, numbers in entries]
    far = b"".join(body for body in bodies if len(body) > 4)  # does not fit into its entry
    directory, at = b"", end
    for (tag, kind_of_entry, numbers), body in zip(entries, bodies, strict=True):
        if tag == 273:
            body = struct.pack(order + "I", end + len(far))
        elif len(body) > 4:
            body, at = struct.pack(order + "I", at), at + len(body)
        code = 3 if kind_of_entry == short else 4
        directory += struct.pack(order + "HHI", tag, code, len(numbers)) + body.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "IH", 8, len(entries)) + directory + bytes(4) + far + data
