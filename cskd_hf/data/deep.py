"""Pixels deeper than 8 bits: as stored, and as the 256 levels that a network sees.

Pillow alone clips deep grey to 255 and keeps the high byte of 16-bit colour. The rule here: the values from black to
white, which are `data.value_range` or else the format's own, are divided into 256 levels of equal width; values beyond
are clipped. By default 16-bit values thus keep their high byte.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

Range = tuple[float, float]  # the values of black and white

# TIFF's tags
_BITS_PER_SAMPLE, _SAMPLE_FORMAT = 258, 339
_SIGNED = 2
_OTHER_BYTE = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}


class UnreadableImageError(Exception):
    """The bytes are not a complete image with pixels of a known range; the message says why."""


class Depth(NamedTuple):
    """How an image stores its pixels, and what is black and white by that format.

    Attributes:
        kind: in words, such as "16-bit".
        low, high: black and white.
    """

    kind: str
    low: float
    high: float


EIGHT_BITS = Depth("8-bit", 0, 255)


def depth_of(opened: ImageFile) -> Depth:
    """The depth of an image that has been opened, but not loaded."""
    mode = opened.mode
    tags: Any = opened.tag_v2 if isinstance(opened, TiffImageFile) else {}
    if mode == "F":
        return Depth("floating-point", 0, 1)
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    if mode.startswith("I"):  # I;16, I;16B, …; I may be anything
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        if opened.format not in ("TIFF", "PNG", "PPM") and mode == "I":
            bits, signed = 32, True
    elif ";16" in _rawmode(opened):
        bits = 16
    elif mode == "L" and signed:
        bits = 8
    else:
        return EIGHT_BITS
    if signed:
        return Depth(f"signed {bits}-bit", -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return Depth(f"{bits}-bit", 0, 2**bits - 1)


def stored_values(
    opened: ImageFile, depth: Depth, reopen: Callable[[], ImageFile]
) -> tuple[np.ndarray, np.ndarray | None]:
    """The pixels of a deep image, (H, W), or (H, W, 3) for RGB, or (H, W, 4) for CMYK; and its alpha, (H, W) uint8.

    Args:
        opened: not loaded yet.
        reopen: opens the same image once more.

    Raises:
        UnreadableImageError: pixels are NaN or infinite.
    """
    rawmode = _rawmode(opened)
    opened.load()
    values = np.asarray(opened)
    if depth.kind == "signed 8-bit":
        return values.view(np.int8), None
    if depth.kind == "32-bit":
        return values.view(np.uint32), None
    if opened.mode.startswith(("I", "F")):
        bad = values.size - int(np.isfinite(values).sum())
        if bad:
            raise UnreadableImageError(f"{bad:,} of {values.size:,} pixels are NaN or infinite")
        return values, _keyed_alpha(values, opened)
    # 16-bit colour, of which Pillow unpacks one byte of each value: decode it twice.
    with reopen() as again:
        if rawmode == "LA;16B":  # unpacked as if grey's two bytes and alpha's were red, green, blue and alpha
            _unpack_as(again, "RGBA")
            return values[..., 0].astype(np.uint16) << 8 | np.asarray(again)[..., 1], values[..., -1]
        _unpack_as(again, re.sub("(?<=;16)[LBN]", lambda order: _OTHER_BYTE[order[0]], rawmode))
        both = values.astype(np.uint16) << 8 | np.asarray(again)
    if opened.mode == "CMYK":
        return both, None
    return both[..., :3], values[..., 3] if opened.mode == "RGBA" else _keyed_alpha(both, opened)


def _keyed_alpha(values: np.ndarray, opened: ImageFile) -> np.ndarray | None:
    """The alpha of a PNG in which one colour is transparent."""
    key = opened.info.get("transparency")
    if key is None:
        return None
    equal = values == key
    return np.where(equal.all(axis=2) if values.ndim == 3 else equal, 0, 255).astype(np.uint8)


def to_rgb(values: np.ndarray, depth: Depth, value_range: Range | None) -> Image.Image:
    """The image that a network sees, from `stored_values`; black and white are `value_range`, else the format's."""
    levels = to_levels(values, *(value_range or depth[1:]))
    if levels.ndim == 3 and levels.shape[2] == 4:
        return Image.frombytes("CMYK", (levels.shape[1], levels.shape[0]), levels.tobytes()).convert("RGB")
    return Image.fromarray(levels).convert("RGB")


def reject_lost(values: np.ndarray, depth: Depth) -> None:
    """Reject an image that the format's own black and white would spoil.

    Raises:
        UnreadableImageError: floats leave [0, 1], or the image becomes a single level although it is not constant.
    """
    _, low, high = depth
    least, greatest = values.min(), values.max()
    beyond = depth.kind == "floating-point" and (least < low or greatest > high)
    if beyond or (least < greatest and len(set(to_levels(np.array([least, greatest]), low, high).tolist())) == 1):
        reason = "exceed" if beyond else "come out as a single level of"
        raise UnreadableImageError(
            f"{depth.kind} pixels from {least:,.10g} to {greatest:,.10g} {reason} the default range, {low:,} to "
            f"{high:,}; write the values of black and white: data.value_range=[LOW,HIGH]"
        )


def to_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """uint8 levels of equal width in `values`; an integer stands for the interval up to the next."""
    width = (high - low + (values.dtype.kind != "f")) / 256
    return ((values.astype(np.float64) - low) / width).clip(0, 255).astype(np.uint8)


def _rawmode(opened: ImageFile) -> str:
    """How the bytes of an image that is not loaded are packed; "" if the decoder decides."""
    arguments: Any = opened.tile[0][3] if opened.tile else ""
    rawmode = arguments if isinstance(arguments, str) else arguments[0]
    return rawmode if isinstance(rawmode, str) else ""


def _unpack_as(opened: Any, rawmode: str) -> None:
    """Load with another interpretation of the bytes, of the same length per pixel."""

    def changed(tile: Any) -> Any:
        arguments = rawmode if isinstance(tile[3], str) else (rawmode, *tile[3][1:])
        return tuple.__new__(type(tile), (*tile[:3], arguments))  # of the same class: named from Pillow 11 on

    opened.tile = [changed(tile) for tile in opened.tile]
    opened.load()
