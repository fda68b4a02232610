"""The fast path for JPEGs: Pillow's pixels bit for bit, and Pillow itself for anything out of the ordinary."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from transform_cases import photograph

from cskd_hf.data.decode import Box, Picture, UnreadableImageError, decode
from cskd_hf.data.jpeg import decode_region, ordinary_size, read_jpeg

pytest.importorskip("simplejpeg")
PHOTOGRAPH = photograph(90, 131)


def jpeg(array: np.ndarray, mode: str | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array, mode).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def encoded(data: bytes) -> dict[str, object]:
    return {"bytes": data, "path": None}


def as_pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


KINDS = {
    "4:2:0": jpeg(PHOTOGRAPH, subsampling=2),
    "4:2:2": jpeg(PHOTOGRAPH, subsampling=1),
    "4:4:4": jpeg(PHOTOGRAPH, subsampling=0),
    "progressive": jpeg(PHOTOGRAPH, progressive=True),
    "grey": jpeg(PHOTOGRAPH[:, :, 0]),
    "optimised": jpeg(PHOTOGRAPH, optimize=True),
    "low quality": jpeg(PHOTOGRAPH, quality=10),
    "stored as RGB": jpeg(PHOTOGRAPH, keep_rgb=True),
    "with a comment and a profile": jpeg(PHOTOGRAPH, comment=b"a" * 400, icc_profile=b"no profile" * 30),
    "one pixel": jpeg(PHOTOGRAPH[:1, :1]),
    "a column": jpeg(PHOTOGRAPH[:, :1]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_ordinary_jpeg_takes_the_fast_path_with_pillows_pixels(kind):
    data, expected = KINDS[kind], as_pillow(KINDS[kind])
    size = ordinary_size(data, None)
    assert size == expected.shape[:2]
    assert (decode_region(data, size, Box(0, 0, *size)) == expected).all()
    assert (np.asarray(decode(encoded(data))) == expected).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_region_has_exactly_pillows_pixels(kind):
    data, expected = KINDS[kind], as_pillow(KINDS[kind])
    picture = Picture(encoded(data))
    height, width = expected.shape[:2]
    assert (picture.height, picture.width) == (height, width)
    draws = np.random.default_rng(3)
    for _ in range(20):
        top, left = draws.integers(0, height), draws.integers(0, width)
        box = Box(
            int(top), int(left), int(draws.integers(1, height - top + 1)), int(draws.integers(1, width - left + 1))
        )
        region = picture.region(box)
        assert region.flags.c_contiguous
        assert region.flags.writeable
        assert np.array_equal(region, expected[box.top : box.top + box.height, box.left : box.left + box.width])


def with_exif(orientation: int | None, order: str = "big") -> bytes:
    exif = Image.Exif()
    exif.endian = "<" if order == "little" else ">"
    exif[0x010F] = "a camera"
    if orientation is not None:
        exif[0x0112] = orientation
    return jpeg(PHOTOGRAPH, exif=exif)


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("orientation", [None, 1, 2, 3, 6, 8, 9])
def test_a_rotated_jpeg_is_left_to_pillow(orientation, order):
    data = with_exif(orientation, order)
    assert (ordinary_size(data, None) is not None) == (orientation in (None, 1))
    picture, expected = Picture(encoded(data)), as_pillow(data)
    assert (picture.region(Box(0, 0, picture.height, picture.width)) == expected).all()


def test_an_orientation_in_xmp_is_left_to_pillow():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    plain, turned = (jpeg(PHOTOGRAPH, xmp=text) for text in (b"<x:xmpmeta/>", xmp))
    assert ordinary_size(plain, None) is not None
    assert ordinary_size(turned, None) is None
    assert np.asarray(decode(encoded(turned))).shape == as_pillow(turned).shape == (131, 90, 3)


@pytest.mark.parametrize(
    "segment",
    [b"Exif\0\0", b"Exif\0\0XX*\0\0\0\0\x08", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"],
)
def test_malformed_exif_is_left_to_pillow(segment):
    data = jpeg(PHOTOGRAPH)
    odd = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert ordinary_size(odd, None) is None
    assert (np.asarray(decode(encoded(odd))) == as_pillow(data)).all()


def test_cmyk_is_left_to_pillow():
    inks = np.concatenate([PHOTOGRAPH, PHOTOGRAPH[:, :, :1] // 3], axis=-1)
    data = jpeg(inks, "CMYK")
    assert ordinary_size(data, None) is None
    assert (np.asarray(decode(encoded(data))) == as_pillow(data)).all()


def test_an_image_of_too_many_pixels_is_left_to_pillow_to_reject(monkeypatch):
    data = KINDS["4:2:0"]
    assert ordinary_size(data, 131 * 90) is not None
    assert ordinary_size(data, 131 * 90 - 1) is None
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImageError, match="11790 pixels"):
        Picture(encoded(data))


def test_a_jpeg_that_only_pillow_accepts_has_pillows_pixels():
    data = KINDS["4:2:0"]
    start = data.index(b"\xff\xda")
    odd = data[:start] + b"\0\0\0" + data[start:]  # stray bytes between segments: libjpeg only warns
    picture = Picture(encoded(odd))
    assert (picture.region(Box(0, 0, 90, 131)) == as_pillow(odd)).all()


def test_a_truncated_jpeg_raises_pillows_error_when_its_pixels_are_read():
    picture = Picture(encoded(KINDS["4:2:0"][:-500]))
    assert (picture.height, picture.width) == (90, 131)
    with pytest.raises(UnreadableImageError, match=r"unreadable image .*truncated"):
        picture.region(Box(0, 0, 20, 20))


def test_only_data_that_starts_like_a_jpeg_is_read_as_one(tmp_path):
    data = KINDS["4:2:0"]
    (tmp_path / "a.png").write_bytes(data)
    (tmp_path / "b.jpg").write_bytes(b"\x89PNG")
    assert read_jpeg({"bytes": None, "path": str(tmp_path / "a.png")}) == data
    for image in (
        {"bytes": None, "path": str(tmp_path / "b.jpg")},
        {"bytes": None, "path": str(tmp_path / "gone.jpg")},
        {"bytes": None, "path": str(tmp_path)},
        {"bytes": None, "path": "a\0b"},
        {"bytes": None, "path": None},
        {"bytes": b"", "path": str(tmp_path / "a.png")},
    ):
        assert read_jpeg(image) is None
