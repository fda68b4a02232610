"""Decoding a region alone, against the whole image's pixels; where a libjpeg-turbo of version 3 is found."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from cskd_hf.data import jpeg, roi

needs_library = pytest.mark.skipif(not roi.available(), reason="no libjpeg-turbo of version 3 or later is found")


def photograph(**options: object) -> bytes:
    draws = np.random.default_rng(4).normal(size=(240, 331, 3))
    pixels = (gaussian_filter(draws, (4, 4, 0)) * 400 + draws * 5 + 128).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def boxes(count: int) -> list[tuple[int, int, int, int]]:
    draws, made = np.random.default_rng(5), []
    for _ in range(count):
        height, width = int(draws.integers(1, 180)), int(draws.integers(1, 250))
        made.append((int(draws.integers(0, 241 - height)), int(draws.integers(0, 332 - width)), height, width))
    corners = [(0, 0, 60, 60), (180, 271, 60, 60), (0, 271, 60, 60), (180, 0, 60, 60), (100, 0, 9, 331)]
    return made + corners


@needs_library
@pytest.mark.parametrize(
    "options", [{"subsampling": kind} for kind in (0, 1, 2)] + [{"progressive": True}, {"restart_marker_rows": 1}]
)
def test_a_region_has_the_whole_images_pixels_within_a_level(options):
    data = photograph(**options)
    whole = np.asarray(Image.open(io.BytesIO(data))).astype(int)
    errors = []
    for top, left, height, width in boxes(40):
        found = roi.decode_region(data, (240, 331), (top, left, height, width))
        errors.append((found - whole[top : top + height, left : left + width]).ravel())
    assert np.abs(np.concatenate(errors)).max() <= 1
    assert np.square(np.concatenate(errors)).mean() < 0.065  # 60 dB


@needs_library
def test_it_is_taken_for_a_small_region_of_a_whole_file_and_not_otherwise(monkeypatch):
    taken = []
    decode = roi.decode_region
    monkeypatch.setattr(roi, "decode_region", lambda *args: taken.append(args[2]) or decode(*args))
    data, small, large = photograph(), (30, 40, 60, 60), (1, 1, 238, 328)
    for box in (small, large):
        assert jpeg.decode_region(data, (240, 331), box).shape == (*box[2:], 3)
    assert jpeg.decode_region(data + b"trailing", (240, 331), small) is not None
    assert taken == [small]
    assert jpeg.decode_region(data[:-900], (240, 331), small) is None
    assert taken == [small]


@needs_library
def test_bytes_that_are_no_jpeg_are_left_to_pillow():
    assert roi.decode_region(b"\xff\xd8\xff\xd9", (240, 331), (0, 0, 50, 50)) is None
    assert roi.decode_region(photograph(), (240, 331), (0, 0, 50, 50)) is not None  # the decoder still works


@needs_library
def test_threads_decode_at_once_each_with_its_own_decoder():
    data, expected = photograph(), {}
    for box in boxes(20):
        expected[box] = roi.decode_region(data, (240, 331), box)
    wrong: list[object] = []

    def decode() -> None:
        for box, pixels in expected.items():
            if not (roi.decode_region(data, (240, 331), box) == pixels).all():
                wrong.append(box)

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_can_be_switched_off(monkeypatch):
    monkeypatch.setattr(roi, "enabled", False)
    assert not roi.available()
    assert jpeg.decode_region(photograph(), (240, 331), (3, 5, 20, 30)).shape == (20, 30, 3)
