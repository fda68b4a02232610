"""Region decoding: Pillow's pixels bit for bit; needs libjpeg-turbo 3 or later."""

from __future__ import annotations

import io
import threading
from random import Random

import numpy as np
import pytest
from PIL import Image
from transform_cases import photograph

from cskd_hf.data import jpeg, roi
from cskd_hf.data.crops import random_resized_crop

needs_library = pytest.mark.skipif(not roi.available(), reason="libjpeg-turbo >= 3 not found")
SIZE = (240, 331)


def encode(**options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photograph(*SIZE)).save(buffer, "JPEG", **{"quality": 92, **options})
    return buffer.getvalue()


def boxes(count: int) -> list[tuple[int, int, int, int]]:
    """Training crops, tiny regions, and regions at the image's edges."""
    draws = Random(5)
    crops = [tuple(random_resized_crop(draws, *SIZE, (0.08, 1.0), (3 / 4, 4 / 3))) for _ in range(count)]
    tiny = [(draws.randrange(SIZE[0] - 8), draws.randrange(SIZE[1] - 8), 8, 1 + draws.randrange(8)) for _ in range(9)]
    edges = [(0, 0, 60, 60), (180, 271, 60, 60), (0, 271, 60, 60), (180, 0, 60, 60), (100, 0, 9, 331)]
    return crops + tiny + edges


@needs_library
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"quality": 20}], ids=str)
def test_a_region_has_exactly_the_pixels_of_the_whole_image(subsampling, options):
    data = encode(subsampling=subsampling, **options)
    whole = np.asarray(Image.open(io.BytesIO(data)))
    for top, left, height, width in boxes(40):
        region = roi.decode_region(data, SIZE, (top, left, height, width))
        assert np.array_equal(region, whole[top : top + height, left : left + width])


@needs_library
def test_only_small_regions_of_complete_files_are_decoded_alone(monkeypatch):
    decoded = []
    decode = roi.decode_region
    monkeypatch.setattr(roi, "decode_region", lambda *args: decoded.append(args[2]) or decode(*args))
    data, small, large = encode(), (30, 40, 60, 60), (1, 1, 238, 328)
    for box in (small, large):
        assert jpeg.decode_region(data, SIZE, box).shape == (*box[2:], 3)
    assert jpeg.decode_region(data + b"trailing", SIZE, small) is not None
    assert jpeg.decode_region(data[:-900], SIZE, small) is None
    assert decoded == [small]


@needs_library
def test_broken_data_yields_none_and_the_decoder_still_works():
    assert roi.decode_region(b"\xff\xd8\xff\xd9", SIZE, (0, 0, 50, 50)) is None
    assert roi.decode_region(encode(), SIZE, (0, 0, 50, 50)) is not None


@needs_library
def test_threads_decode_concurrently():
    data = encode()
    expected = {box: roi.decode_region(data, SIZE, box) for box in boxes(20)}
    wrong: list[object] = []

    def decode() -> None:
        wrong.extend(box for box, pixels in expected.items() if (roi.decode_region(data, SIZE, box) != pixels).any())

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_region_decoding_can_be_disabled(monkeypatch):
    monkeypatch.setattr(roi, "enabled", False)
    assert not roi.available()
    assert jpeg.decode_region(encode(), SIZE, (3, 5, 20, 30)).shape == (20, 30, 3)
