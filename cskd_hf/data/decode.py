"""Encoded bytes → a network's pixels, by the same rules in training and evaluation.

An ordinary JPEG is decoded by libjpeg-turbo (`jpeg.py`), only the requested region where `roi.py` can; every other
image goes through Pillow.

Decoding is exact: full and region decoding give Pillow's pixels bit for bit. Training crops still differ from Pillow's
by one level, rarely more, because torch resizes them (`crops.resize`). Measured: no difference in 4,600 random regions
of baseline and progressive JPEGs (4:4:4, 4:2:2, 4:2:0, 4:1:1, grey, RGB).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

import cskd_hf.data.formats  # noqa: F401  registers HEIC
from cskd_hf.data import deep
from cskd_hf.data.deep import EIGHT_BITS, Depth, Range, UnreadableImageError, depth_of, stored_values
from cskd_hf.data.jpeg import ORIENTATION, decode_region, ordinary_size, read_jpeg

__all__ = [
    *("Box", "Conversion", "Picture", "UnreadableImageError"),
    *("decode", "fits_jpeg", "has_alpha", "orientation_of", "survey"),
]

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


class Conversion(NamedTuple):
    """How stored pixels are converted.

    Attributes:
        mode: Pillow's: "RGB", "L" (the luma of RGB) or "RGBA" (opaque where the image has no alpha).
        background: the colour under transparent pixels, unless the mode is RGBA.
        value_range: the values of black and white in images deeper than 8 bits; None: by their format.
        strict: without a `value_range`, reject images that their format's would spoil, see `deep.reject_lost`.
    """

    mode: str = "RGB"
    background: str | tuple[int, int, int] = "white"
    value_range: Range | None = None
    strict: bool = False


_RGB = Conversion()


class Picture:
    """An upright image; an ordinary JPEG's pixels are decoded on request.

    Greyscale, palette and CMYK images become RGB, alpha is composited, and deeper pixels are mapped to 8 bits, see
    `deep.py`.

    Args:
        image: `{"bytes": …, "path": …}` as `datasets.Image(decode=False)` gives it; bytes take precedence.
        conversion: of its pixels.

    Raises:
        UnreadableImageError: missing file, truncated, not an image, too large, NaN, or rejected. Also from `region`.
    """

    def __init__(self, image: Mapping[str, Any], conversion: Conversion = _RGB) -> None:
        self._image, self._conversion, self._jpeg = image, conversion, read_jpeg(image)
        size = None if self._jpeg is None else ordinary_size(self._jpeg, Image.MAX_IMAGE_PIXELS)
        self._pixels: np.ndarray | None = None
        if size is None:
            self._pixels = _decode_with_pillow(image, conversion)
            size = self._pixels.shape[0], self._pixels.shape[1]
        self.height, self.width = size

    def region(self, box: Box) -> np.ndarray:
        """(box.height, box.width, channels) uint8, contiguous and writable."""
        if self._pixels is None:
            assert self._jpeg is not None
            region = decode_region(self._jpeg, (self.height, self.width), box)
            if region is not None:
                return region if self._conversion.mode == "RGB" else _as_array(region, self._conversion.mode)
            # Damaged: Pillow either decodes it or raises the error to report.
            self._pixels = _decode_with_pillow(self._image, self._conversion)
        return np.ascontiguousarray(self._pixels[box.top : box.top + box.height, box.left : box.left + box.width])


def decode(image: Mapping[str, Any], conversion: Conversion = _RGB) -> Image.Image:
    """The whole image, in the conversion's mode; see `Picture`."""
    picture = Picture(image, conversion)
    pixels = picture.region(Box(0, 0, picture.height, picture.width))
    return Image.fromarray(pixels[..., 0] if conversion.mode == "L" else pixels)


def survey(image: Mapping[str, Any], conversion: Conversion = _RGB) -> tuple[Depth, np.ndarray]:
    """How an image stores its pixels, and its colours: as stored if they are deeper than 8 bits, else converted.

    Raises:
        UnreadableImageError: see `Picture`; values of any range are read.
    """
    jpeg = read_jpeg(image)
    if jpeg is not None and ordinary_size(jpeg, Image.MAX_IMAGE_PIXELS) is not None:
        return EIGHT_BITS, np.asarray(decode(image))
    stored = _read_with_pillow(image)
    if stored.depth is EIGHT_BITS:
        return EIGHT_BITS, _converted(stored.pixels, conversion)[..., :3]
    return stored.depth, stored.pixels


def has_alpha(opened: Image.Image) -> bool:
    """Whether an image has an alpha channel or a transparent colour, from its header."""
    return opened.mode.endswith(("A", "a")) or "transparency" in opened.info


def fits_jpeg(image: Mapping[str, Any]) -> bool:
    """Whether an image has 8 bits and no alpha, from its header; True if that is broken."""
    try:
        with _opened(image) as opened:
            return depth_of(opened) == EIGHT_BITS and not has_alpha(opened)
    except UnreadableImageError:  # `decode` reports it
        return True


def orientation_of(opened: Image.Image) -> tuple[int, bool]:
    """EXIF's orientation of an image, 1 to 8, and whether its metadata could be read; 1 if not."""
    try:
        orientation = opened.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow's parsers of EXIF and XMP raise many unrelated types
        return 1, False
    return (orientation if orientation in _UPRIGHT else 1), True


def _open(image: Mapping[str, Any]) -> ImageFile:
    return Image.open(image["path"] if image["bytes"] is None else io.BytesIO(image["bytes"]))


@contextmanager
def _opened(image: Mapping[str, Any]) -> Iterator[ImageFile]:
    """An image opened by Pillow, without its warnings; every error of its decoders is an `UnreadableImageError`."""
    if image["bytes"] is None and image["path"] is None:
        raise UnreadableImageError("the row has neither bytes nor a path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF, many pixels: see `inspect.py`
            with _open(image) as opened:
                yield opened
    except (MemoryError, UnreadableImageError):  # not the image's fault, or already a message
        raise
    except UnidentifiedImageError:  # Pillow's own message shows the buffer's address
        raise UnreadableImageError("unreadable image (not in any format that Pillow reads)") from None
    except Exception as error:  # decoders raise unrelated types: OSError, SyntaxError (PNG), RuntimeError (AVIF), …
        raise UnreadableImageError(f"unreadable image ({error})") from None


class _Stored(NamedTuple):
    """A decoded image, not yet upright: 8-bit pixels in RGB or RGBA, deeper ones as `deep.stored_values`."""

    depth: Depth
    pixels: Any
    alpha: np.ndarray | None  # (H, W) uint8, of deeper pixels
    orientation: int


def _read_with_pillow(image: Mapping[str, Any]) -> _Stored:
    with _opened(image) as opened:
        depth = depth_of(opened)
        if depth is EIGHT_BITS:
            opened.load()  # before `has_transparency_data`, which needs the palette
            read: tuple[Any, Any] = opened.convert("RGBA" if opened.has_transparency_data else "RGB"), None
        else:
            read = stored_values(opened, depth, lambda: _open(image))
        return _Stored(depth, *read, orientation_of(opened)[0])  # once loaded: a TIFF turns itself


def _decode_with_pillow(image: Mapping[str, Any], conversion: Conversion) -> np.ndarray:
    """(H, W, channels) uint8."""
    depth, pixels, alpha, orientation = _read_with_pillow(image)
    if depth is not EIGHT_BITS:
        if conversion.strict and conversion.value_range is None:
            deep.reject_lost(pixels, depth)
        pixels = deep.to_rgb(pixels, depth, conversion.value_range)
        if alpha is not None:
            pixels.putalpha(Image.fromarray(alpha))
    return _converted(pixels.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else pixels, conversion)


def _converted(image: Image.Image, conversion: Conversion) -> np.ndarray:
    """An image in RGB or RGBA as (H, W, channels) uint8."""
    if image.mode == "RGBA" and conversion.mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, conversion.background), image).convert("RGB")
    return _as_array(image, conversion.mode)


def _as_array(image: Image.Image | np.ndarray, mode: str) -> np.ndarray:
    """An image as (H, W, channels) uint8 of another mode; no alpha means opaque."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels
