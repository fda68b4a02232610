"""Pixels deeper than 8 bits: the values of every format, the rule that maps them to 256 levels, and rejections."""

from __future__ import annotations

import io
import math
import zlib
from fractions import Fraction

import numpy as np
import pytest
from deep_images import png, tiff
from PIL import Image

from cskd_hf.data.decode import Conversion, UnreadableImageError, decode, survey

RANDOM = np.random.default_rng(0)


def draw(kind: str, low: float, high: float, channels: int | None = None) -> np.ndarray:
    """9 × 7 values that include both ends."""
    shape = (9, 7) if channels is None else (9, 7, channels)
    values = RANDOM.uniform(low, high, shape) if kind[0] == "f" else RANDOM.integers(low, high, shape, endpoint=True)
    values[0, 0], values[-1, -1] = low, high
    return values.astype(kind)


def level(value: float, low: float, high: float, is_integer: bool) -> int:
    """256 intervals of equal width; an integer v is the interval from v to v + 1. Exact."""
    share = (Fraction(float(value)) - Fraction(low)) / (Fraction(high) - Fraction(low) + is_integer)
    return min(max(math.floor(256 * share), 0), 255)


def expected(values: np.ndarray, low: float, high: float) -> np.ndarray:
    is_integer = values.dtype.kind != "f"
    return np.vectorize(lambda value: level(value, low, high, is_integer), otypes=[int])(values)


def pixels(data: bytes, value_range: tuple[float, float] | None = None) -> np.ndarray:
    return np.asarray(decode({"bytes": data, "path": None}, Conversion(value_range=value_range))).astype(int)


GREY = {
    "16-bit PNG": (lambda v: png(v), "u2", (0, 65535)),
    "interlaced 16-bit PNG": (lambda v: png(v, interlaced=True), "u2", (0, 65535)),
    "16-bit TIFF": (lambda v: tiff(v), "u2", (0, 65535)),
    "big-endian 16-bit TIFF": (lambda v: tiff(v, ">"), "u2", (0, 65535)),
    "deflated 16-bit TIFF": (lambda v: tiff(v, deflate=True), "u2", (0, 65535)),
    "signed 8-bit TIFF": (lambda v: tiff(v), "i1", (-128, 127)),
    "signed 16-bit TIFF": (lambda v: tiff(v), "i2", (-32768, 32767)),
    "big-endian signed 16-bit TIFF": (lambda v: tiff(v, ">"), "i2", (-32768, 32767)),
    "32-bit TIFF": (lambda v: tiff(v), "u4", (0, 2**32 - 1)),
    "signed 32-bit TIFF": (lambda v: tiff(v), "i4", (-(2**31), 2**31 - 1)),
    "float TIFF": (lambda v: tiff(v), "f4", (0, 1)),
    "big-endian float TIFF": (lambda v: tiff(v, ">"), "f4", (0, 1)),
}
each_grey = pytest.mark.parametrize(("encode", "kind", "limits"), GREY.values(), ids=GREY)
COLOUR = {
    "16-bit PNG": lambda v: png(v),
    "interlaced 16-bit PNG": lambda v: png(v, interlaced=True),
    "16-bit TIFF": lambda v: tiff(v),
    "big-endian 16-bit TIFF": lambda v: tiff(v, ">"),
    "deflated 16-bit TIFF": lambda v: tiff(v, deflate=True),
    "deflated big-endian 16-bit TIFF": lambda v: tiff(v, ">", deflate=True),
}
each_colour = pytest.mark.parametrize("encode", COLOUR.values(), ids=COLOUR)


@each_grey
def test_black_and_white_are_the_formats_own_by_default(encode, kind, limits):
    values = draw(kind, *limits)
    depth, seen = survey({"bytes": encode(values), "path": None})
    assert (depth.low, depth.high) == limits
    assert (seen == values).all()
    assert (pixels(encode(values)) == expected(values, *limits)[:, :, None]).all()


@each_grey
@pytest.mark.parametrize("value_range", [(0, 100), (-20, 90), (16, 79)])
def test_a_value_range_is_256_levels_of_equal_width(encode, kind, limits, value_range):
    values = draw(kind, max(limits[0], -40), 120)
    assert (pixels(encode(values), value_range) == expected(values, *value_range)[:, :, None]).all()


@each_colour
@pytest.mark.parametrize("value_range", [None, (0, 4095), (100, 1123)])
def test_both_bytes_of_16_bit_colour_are_read(encode, value_range):
    values = draw("u2", 0, 65535 if value_range is None else 4095, 3)
    assert (pixels(encode(values), value_range) == expected(values, *(value_range or (0, 65535)))).all()


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_alpha_of_16_bits_is_composited_and_not_part_of_the_range(channels, interlaced):
    values = draw("u2", 0, 4095, channels)
    values[..., -1] = RANDOM.integers(0, 65535, values.shape[:2], endpoint=True)
    data = png(values, interlaced)
    share = (values[..., -1:] >> 8) / 255
    shown = expected(values[..., :-1], 0, 4095) * share + 255 * (1 - share)
    assert np.abs(pixels(data, (0, 4095)) - shown).max() <= 1
    assert survey({"bytes": data, "path": None})[1].max() <= 4095


@pytest.mark.parametrize("channels", [None, 3])
def test_the_transparent_colour_of_a_16_bit_png_is_white(channels):
    values = draw("u2", 0, 65535, channels)
    key = values[2, 3].reshape(-1).astype(">u2").tobytes()
    chunk = len(key).to_bytes(4, "big") + (b"tRNS" + key) + zlib.crc32(b"tRNS" + key).to_bytes(4, "big")
    data = png(values)
    at = data.index(b"IDAT") - 4
    shown = np.broadcast_to(expected(values, 0, 65535).reshape(9, 7, -1), (9, 7, 3)).copy()
    shown[2, 3] = 255
    assert (pixels(data[:at] + chunk + data[at:]) == shown).all()


def test_16_bit_inks_become_the_printed_colours():
    inks = draw("u2", 0, 4095, 4)
    levels = expected(inks, 0, 4095).astype(np.uint8)
    printed = np.asarray(Image.frombytes("CMYK", (7, 9), levels.tobytes()).convert("RGB"))
    assert (pixels(tiff(inks, cmyk=True), (0, 4095)) == printed).all()


def test_12_bits_in_16_are_told_apart_as_finely_as_8_bits_allow():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    for encode in (png, tiff):
        assert (pixels(encode(values), (0, 4095))[..., 0] == values >> 4).all()
        assert (pixels(encode(values[:16, :16] % 256), (0, 255))[..., 0] == values[:16, :16] % 256).all()


def test_eight_bit_images_are_not_rescaled():
    values = draw("u1", 0, 255, 3)
    assert (pixels(png(values), (0, 4095)) == values).all()


def test_maxval_of_pgm_is_white():
    data = b"P5 2 1 1023\n" + np.array([0, 1023], ">u2").tobytes()
    assert pixels(data)[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("channels", [None, 3])
def test_deep_images_are_turned_upright(order, channels):
    values = draw("u2", 0, 65535, channels)
    turned = np.rot90(values)  # as stored under orientation 6
    assert (pixels(tiff(np.ascontiguousarray(turned), order, orientation=6)) == pixels(tiff(values, order))).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("value_range", [None, (0, 1)])
def test_pixels_that_are_not_finite_are_unreadable(bad, value_range):
    values = draw("f4", 0, 1)
    values[2, 3:5] = bad
    with pytest.raises(UnreadableImageError, match="2 of 63 pixels are NaN or infinite"):
        pixels(tiff(values), value_range)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (draw("f4", 0, 255), "floating-point pixels from 0 to 255 exceed the default range, 0 to 1"),
        (draw("f4", -1, 1), "floating-point pixels from -1 to 1 exceed the default range, 0 to 1"),
        (
            draw("u2", 0, 200),
            "16-bit pixels from 0 to 200 come out as a single level of the default range, 0 to 65,535",
        ),
        (draw("i2", 0, 200), "signed 16-bit pixels from 0 to 200 come out as a single level of"),
        (draw("u2", 0, 200, 3), "16-bit pixels from 0 to 200 come out as a single level of"),
        (draw("u4", 0, 65535), "32-bit pixels from 0 to 65,535 come out as a single level of"),
    ],
)
def test_an_image_that_would_be_lost_is_unreadable_without_a_value_range(values, message):
    with pytest.raises(UnreadableImageError, match=message) as caught:
        decode({"bytes": tiff(values), "path": None}, Conversion(strict=True))
    assert "data.value_range=[LOW,HIGH]" in str(caught.value)
    assert len(np.unique(pixels(tiff(values), (float(values.min()), float(values.max()))))) > 20


def test_a_black_image_stays_black():
    assert (pixels(png(np.zeros((4, 4), np.uint16))) == 0).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_8_bit_mode_becomes_the_same_colour(mode):
    lab = Image.frombytes("LAB", (16, 16), bytes([255, 0, 0]) * 256)
    image = lab if mode == "LAB" else Image.new("RGB", (16, 16), (255, 255, 255)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", compression="tiff_deflate" if mode == "YCbCr" else None)
    assert (pixels(file.getvalue()) >= 254).all()
