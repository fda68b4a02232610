"""Images made smaller, for a copy of a set that loads faster; and what a copy says of itself."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cskd_hf.data.decode import decode


def smaller(picture: Image.Image, short_side: int) -> Image.Image | None:
    """The picture with a short side of `short_side` pixels, its ratio kept; None: it has no more already."""
    if min(picture.size) <= short_side:
        return None
    scale = short_side / min(picture.size)
    width, height = (max(short_side, round(side * scale)) for side in picture.size)
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def resized_bytes(image: Mapping[str, Any], short_side: int, quality: int) -> bytes:
    """A JPEG (4:2:0), upright, in RGB; or the image's own bytes, where it is not larger.

    Args:
        image: `{"bytes": …, "path": …}`.
        quality: Pillow's, 1 to 95.

    Raises:
        UnreadableImageError: the image cannot be decoded.
    """
    small = smaller(decode(image), short_side)
    if small is None:
        return image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=quality, subsampling=2)
    return buffer.getvalue()


def stored_decibels(image: Mapping[str, Any], stored: bytes, short_side: int) -> float:
    """PSNR of the stored image against the original made smaller likewise; inf: nothing was lost but size.

    Raises:
        UnreadableImageError: either cannot be decoded.
    """
    original = decode(image)
    expected = np.asarray(smaller(original, short_side) or original, dtype=np.float32)
    error = float(np.square(np.asarray(decode({"bytes": stored, "path": None}), dtype=np.float32) - expected).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)
