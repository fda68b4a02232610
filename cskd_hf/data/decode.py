"""Encoded bytes → RGB pixels, by the same rules in training and evaluation.

An ordinary JPEG is decoded by libjpeg-turbo (`jpeg.py`), only the requested region where `roi.py` can; every other
image goes through Pillow.

Decoding is exact: full and region decoding give Pillow's pixels bit for bit. Training crops still differ from Pillow's
by one level, rarely two, because torch resizes them (`crops.resize`). Measured: no difference in 4,600 random regions
of baseline and progressive JPEGs (4:4:4, 4:2:2, 4:2:0, 4:1:1, grey, RGB); after resizing, four of 90 million numbers
differ by two, 74 dB.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

import cskd_hf.data.formats  # noqa: F401  registers HEIC
from cskd_hf.data import deep
from cskd_hf.data.deep import EIGHT_BITS, Depth, Range, UnreadableImageError, depth_of, stored_values
from cskd_hf.data.jpeg import ORIENTATION, decode_region, ordinary_size, read_jpeg

__all__ = ["Box", "Picture", "UnreadableImageError", "decode", "is_deep", "orientation_of", "survey"]

# EXIF's orientations, and how to turn the stored image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Box(NamedTuple):
    """A region of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


class Picture:
    """An upright RGB image; an ordinary JPEG's pixels are decoded on request.

    Greyscale, palette and CMYK images become RGB and alpha is dropped, which is how timm and transformers present
    images to a published model. Deeper pixels are mapped to 8 bits, see `deep.py`.

    Args:
        image: `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives it; bytes take precedence.
        value_range: the values of black and white in images deeper than 8 bits; None: by their format.
        strict: without a `value_range`, reject images that their format's would spoil, see `deep.reject_lost`.

    Raises:
        UnreadableImageError: missing file, truncated, not an image, too large, NaN, or rejected. Also from `region`.
    """

    def __init__(self, image: Mapping[str, Any], value_range: Range | None = None, strict: bool = False) -> None:
        self._image, self._jpeg = image, read_jpeg(image)
        size = None if self._jpeg is None else ordinary_size(self._jpeg, Image.MAX_IMAGE_PIXELS)
        self._pixels: np.ndarray | None = None
        if size is None:
            self._pixels = _decode_with_pillow(image, value_range, strict)
            size = self._pixels.shape[0], self._pixels.shape[1]
        self.height, self.width = size

    def region(self, box: Box) -> np.ndarray:
        """(box.height, box.width, 3) uint8, contiguous and writable."""
        if self._pixels is None:
            assert self._jpeg is not None
            region = decode_region(self._jpeg, (self.height, self.width), box)
            if region is not None:
                return region
            # Damaged: Pillow either decodes it or raises the error to report.
            self._pixels = _decode_with_pillow(self._image, None, strict=False)
        return np.ascontiguousarray(self._pixels[box.top : box.top + box.height, box.left : box.left + box.width])


def decode(image: Mapping[str, Any], value_range: Range | None = None, strict: bool = False) -> Image.Image:
    """The whole image in RGB; see `Picture`."""
    picture = Picture(image, value_range, strict)
    return Image.fromarray(picture.region(Box(0, 0, picture.height, picture.width)))


def survey(image: Mapping[str, Any]) -> tuple[Depth, np.ndarray]:
    """How an image stores its pixels, and these: as stored if they are deeper than 8 bits, else in RGB.

    Raises:
        UnreadableImageError: see `Picture`; values of any range are read.
    """
    jpeg = read_jpeg(image)
    if jpeg is not None and ordinary_size(jpeg, Image.MAX_IMAGE_PIXELS) is not None:
        return EIGHT_BITS, np.asarray(decode(image))
    depth, pixels, _ = _read_with_pillow(image)
    return depth, np.asarray(pixels)


def is_deep(image: Mapping[str, Any]) -> bool:
    """Whether an image is deeper than 8 bits, from its header; False if that is broken."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _open(image) as opened:
                return depth_of(opened) != EIGHT_BITS
    except Exception:  # to be reported by `decode`
        return False


def orientation_of(opened: Image.Image) -> tuple[int, bool]:
    """EXIF's orientation of an image, 1 to 8, and whether its metadata could be read; 1 if not."""
    try:
        orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parsers of EXIF and XMP raise many types
        return 1, False
    return (orientation if orientation in _UPRIGHT else 1), True


def _open(image: Mapping[str, Any]) -> Image.Image:
    return Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]))


def _decode_with_pillow(image: Mapping[str, Any], value_range: Range | None, strict: bool) -> np.ndarray:
    """(H, W, 3) uint8."""
    depth, pixels, orientation = _read_with_pillow(image)
    if isinstance(pixels, Image.Image):
        rgb = pixels
    else:
        if strict and value_range is None:
            deep.reject_lost(pixels, depth)
        rgb = deep.to_rgb(pixels, depth, value_range)
    return np.array(rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb)


def _read_with_pillow(image: Mapping[str, Any]) -> tuple[Depth, Image.Image | np.ndarray, int]:
    """Depth, pixels, in RGB or as `deep.stored_values`, and the orientation that they still need."""
    if image["bytes"] is None and image["path"] is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF, many pixels: see `inspect.py`
            with _open(image) as opened:
                depth = depth_of(opened)
                pixels = (
                    opened.convert("RGB") if depth is EIGHT_BITS else stored_values(opened, depth, lambda: _open(image))
                )
                return depth, pixels, orientation_of(opened)[0]  # once loaded: a TIFF turns itself
    except (MemoryError, UnreadableImageError):  # not the image's fault, or already a message
        raise
    except UnidentifiedImageError:  # Pillow's own message shows the buffer's address
        raise UnreadableImageError("unreadable image (not in any format that Pillow reads)") from None
    except Exception as error:
        # Pillow's decoders raise a dozen unrelated types: OSError for truncation, SyntaxError for a broken PNG chunk,
        # RuntimeError from AVIF, …
        raise UnreadableImageError(f"unreadable image ({error})") from None
