"""Encoded bytes → RGB pixels, by one law for training and tests."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


class UnreadableImageError(Exception):
    """The bytes are not a whole image; the message says what the decoder said."""


def decode(image: Mapping[str, Any]) -> Image.Image:
    """Decode one image to 8-bit RGB, turned upright by its EXIF orientation.

    Greyscale, palette and CMYK images become RGB, and alpha is dropped: what timm and transformers show a published
    model. 16-bit grey is scaled to 8 bits, where Pillow clips it to white.

    Args:
        image: `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives it; bytes win.

    Raises:
        UnreadableImageError: missing file, truncated, not an image, or too large to be one.
    """
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
