"""Encoded bytes → RGB pixels, by one law for training and tests.

JPEG goes the fast way, `data/jpeg.py`: only the region that is asked for has to become pixels. Every other format, and
every JPEG that is out of the ordinary, goes through Pillow. Both ways give the same pixels of a JPEG, bit for bit.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cskd_hf.data.jpeg import decode_region, ordinary_size, read_jpeg


class UnreadableImageError(Exception):
    """The bytes are not a whole image; the message says what the decoder said."""


class Box(NamedTuple):
    """A region of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Picture(Protocol):
    """An upright image of known size, whose pixels are decoded when they are asked for."""

    height: int
    width: int

    def region(self, box: Box) -> np.ndarray:
        """(box.height, box.width, 3) uint8, contiguous and writable.

        Raises:
            UnreadableImageError: see `decode`.
        """


def open_picture(image: Mapping[str, Any]) -> Picture:
    """Read an image's size; its pixels too, unless it is an ordinary JPEG.

    Args:
        image: `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives it; bytes win.

    Raises:
        UnreadableImageError: see `decode`.
    """
    jpeg = ordinary_jpeg(image)
    if jpeg is None:
        return _Pixels(np.array(_decode_with_pillow(image)))
    data, height, width = jpeg
    return _Jpeg(image, data, height, width)


def ordinary_jpeg(image: Mapping[str, Any]) -> tuple[bytes, int, int] | None:
    """Bytes, height and width of an image that need not go through Pillow; else None."""
    data = read_jpeg(image)
    size = None if data is None else ordinary_size(data, Image.MAX_IMAGE_PIXELS)
    return None if data is None or size is None else (data, *size)


def decode(image: Mapping[str, Any]) -> Image.Image:
    """Decode one image to 8-bit RGB, turned upright by its EXIF orientation.

    Greyscale, palette and CMYK images become RGB, and alpha is dropped: what timm and transformers show a published
    model. 16-bit grey is scaled to 8 bits, where Pillow clips it to white.

    Args:
        image: `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives it; bytes win.

    Raises:
        UnreadableImageError: missing file, truncated, not an image, or too large to be one.
    """
    jpeg = ordinary_jpeg(image)
    if jpeg is not None:
        data, *size = jpeg
        pixels = decode_region(data, (size[0], size[1]), Box(0, 0, size[0], size[1]))
        if pixels is not None:
            return Image.fromarray(pixels)
    return _decode_with_pillow(image)


class _Pixels:
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def region(self, box: Box) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[box.top : box.top + box.height, box.left : box.left + box.width])


class _Jpeg:
    def __init__(self, image: Mapping[str, Any], data: bytes, height: int, width: int) -> None:
        self.image, self.data, self.height, self.width = image, data, height, width

    def region(self, box: Box) -> np.ndarray:
        pixels = decode_region(self.data, (self.height, self.width), box)
        if pixels is None:  # damaged: Pillow decides whether it can be shown, and what is said if not
            return _Pixels(np.array(_decode_with_pillow(self.image))).region(box)
        return pixels


def _decode_with_pillow(image: Mapping[str, Any]) -> Image.Image:
    source = io.BytesIO(image["bytes"]) if image["bytes"] is not None else image["path"]
    if source is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        with Image.open(source) as opened:
            opened.load()
            upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I;16") or upright.mode == "I":
            return Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
        if upright.mode == "F":
            raise UnreadableImageError("unreadable image (floating-point pixels, of no known range)")
        if upright.mode == "P" and "transparency" in upright.info:
            upright = upright.convert("RGBA")  # else Pillow warns at every such image
        return upright.convert("RGB")
    except (MemoryError, UnreadableImageError):  # the machine's fault, or said already
        raise
    except UnidentifiedImageError:  # Pillow's own message shows the buffer's address
        raise UnreadableImageError("unreadable image (not in any format that Pillow reads)") from None
    except Exception as error:
        # Pillow's decoders raise a dozen unrelated types: OSError for truncation, SyntaxError for a broken PNG chunk,
        # struct.error for broken EXIF, RuntimeError from AVIF, …
        raise UnreadableImageError(f"unreadable image ({error})") from None
