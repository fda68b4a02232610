"""What the checks say about pixel values, EXIF, slivers and huge images."""

from __future__ import annotations

import io

import numpy as np
import pytest
from deep_images import png, tiff
from PIL import Image

from cskd_hf.data.decode import Conversion
from cskd_hf.data.duplicates import Diagnostics
from cskd_hf.data.inspect import check_test_values, metadata_notes, quick_check
from cskd_hf.data.splits import load_images, load_split
from cskd_hf.data.statistics import ImageStatistics
from cskd_hf.data.values import check_values, deep_ranges, describe_values
from cskd_hf.errors import UserError
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection, TransformSection

RANDOM = np.random.default_rng(0)


def noise(kind: str, low: float, high: float, channels: int = 0) -> np.ndarray:
    shape = (16, 16, channels) if channels else (16, 16)
    values = RANDOM.uniform(low, high, shape)
    values[0, 0], values[-1, -1] = low, high
    return values.astype(kind)


def statistics(*contents: bytes, value_range: tuple[float, float] | None = None, num_decoded: int = 50):
    found = ImageStatistics()
    for content in contents:
        found.add_image(content, num_decoded, Conversion(value_range=value_range))
    return found


def checked(content: bytes, value_range: tuple[float, float] | None = None) -> Diagnostics:
    diagnostics = Diagnostics()
    check_values({"train": statistics(content, value_range=value_range).values}, value_range, diagnostics)
    return diagnostics


FATAL = {
    "12 bits in 16": (tiff(noise("u2", 350, 3800)), "16-bit", "I;16", "[0,4095]"),
    "10 bits in 16": (tiff(noise("u2", 352, 548)), "16-bit", "I;16", "[0,1023]"),
    "8 bits in 16": (tiff(noise("u2", 0, 255)), "16-bit", "I;16", "[0,255]"),
    "12 bits in 16-bit TIFF": (tiff(noise("u2", 0, 4095), ">"), "16-bit", "I;16B", "[0,4095]"),
    "12 bits in 16-bit colour": (png(noise("u2", 0, 4095, 3)), "16-bit", "RGB", "[0,4095]"),
    "12 bits in 16-bit grey with alpha": (png(noise("u2", 0, 4095, 2)), "16-bit", "RGBA", "[0,4095]"),
    "16 bits in 32": (tiff(noise("u4", 0, 65535)), "32-bit", "I", "[0,65535]"),
    "14 bits in 32": (tiff(noise("i4", 0, 16000)), "signed 32-bit", "I", "[0,16383]"),
    "Hounsfield units": (tiff(noise("i2", -1000, 3000)), "signed 16-bit", "I", "[-1000,3000]"),
    "floats of 8 bits": (tiff(noise("f4", 0, 255)), "floating-point", "F", "[0,255]"),
    "floats around zero": (tiff(noise("f4", -1.5, 1)), "floating-point", "F", "[-2,1]"),
    "small floats": (tiff(noise("f4", 0, 0.02)), "floating-point", "F", "[0,0.02]"),
    "bright values in a narrow range": (tiff(noise("u2", 60_000, 65_535)), "16-bit", "I;16", "[0,65535]"),
}


@pytest.mark.parametrize(("content", "kind", "mode", "proposed"), FATAL.values(), ids=FATAL)
def test_deep_images_that_would_come_out_dark_are_fatal_and_a_range_is_proposed(content, kind, mode, proposed):
    diagnostics = checked(content)
    (line,) = diagnostics.fatal
    assert line.startswith(f"{kind} images (mode {mode}) ")
    assert f"write data.value_range={proposed}, " in line
    low, high = map(float, proposed[1:-1].split(","))
    assert checked(content, (low, high)).fatal == []


@pytest.mark.parametrize(
    "content",
    [
        png(noise("u2", 100, 60_000)),
        tiff(noise("i2", -32_000, 32_000)),
        tiff(noise("f4", 0, 1)),
        png(noise("u1", 0, 255, 3)),
        png(noise("u1", 100, 200)),
    ],
)
def test_images_that_fill_their_range_pass(content):
    assert checked(content) == Diagnostics()


def test_a_wrong_value_range_is_a_problem():
    content = png(noise("u2", 350, 3800))
    assert "come out nearly black or uniform" in checked(content, (0, 65_535)).problems[0]
    assert "beyond data.value_range, which become black or white: 9" in checked(content, (0, 512)).problems[0]
    assert checked(content, (0, 4095)) == Diagnostics()
    few = checked(content, (500, 4095))  # a deliberate window
    assert (few.problems, len(few.notes)) == ([], 1)
    assert "has no effect" in checked(png(noise("u1", 0, 255)), (0, 4095)).problems[0]


def test_nearly_black_8_bit_images_are_a_problem():
    assert "values are 0 to 15 in train" in checked(png(noise("u1", 0, 15))).problems[0]


def test_one_deep_image_among_many_is_found_without_decoding_the_others():
    ordinary, deep = png(noise("u1", 0, 255, 3)), tiff(noise("u2", 0, 4095))
    found = statistics(*[ordinary] * 5, deep, ordinary, num_decoded=1)
    assert found.decoded == 2
    assert describe_values(found.values, None) == "RGB 0 to 255; I;16 0 to 4,095 of 0 to 65,535"
    assert deep_ranges({"train": found.values}, None) == {"16-bit": (0, 65_535)}
    assert deep_ranges({"train": found.values}, (0, 4095)) == {"16-bit": (0, 4095)}


def jpeg(orientation: int | None = None, exif: bytes | None = None, size: tuple[int, int] = (16, 8)) -> bytes:
    tags = Image.Exif()
    if orientation is not None:
        tags[0x0112] = orientation
    file = io.BytesIO()
    Image.effect_noise(size, 60).save(file, "JPEG", exif=tags.tobytes() if exif is None else exif)
    return file.getvalue()


def test_turned_images_and_broken_metadata_are_counted():
    broken = b"Exif\0\0MM\0*\0\0\xff\xff"
    found = statistics(jpeg(), jpeg(1), jpeg(6), jpeg(8), jpeg(exif=broken), tiff(noise("u1", 0, 255), orientation=6))
    assert (found.opened, found.turned, found.broken_metadata, found.unreadable) == (6, 3, 1, [])
    turned, unreadable = metadata_notes({"train": found}, TransformSection())
    assert "with an EXIF orientation: 3 of 6 train images" in turned
    assert "cannot be read: 1 of 6 train images" in unreadable


@pytest.mark.parametrize(
    ("channels", "rule"), [(3, "shown on white (transform.background)"), (4, "the fourth channel")]
)
def test_images_with_alpha_and_deep_ones_are_counted_in_one_line(channels, rule):
    found = statistics(png(noise("u1", 0, 255, 4)), png(noise("u2", 0, 65535, 2)), png(noise("u1", 0, 255, 3)))
    (note,) = metadata_notes({"train": found, "test": ImageStatistics()}, TransformSection(input_size=(channels, 8, 8)))
    deep = "deeper than 8 bits: 1 of 3 train images checked, read by data.value_range"
    assert note == f"with alpha: 2 of 3 train images checked, {rule}; {deep}"


def test_huge_images_are_counted_without_a_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    (note,) = metadata_notes({"train": statistics(jpeg(), jpeg(size=(4, 4)))}, TransformSection())
    assert note.startswith("images of more than 100 pixels (PIL.Image.MAX_IMAGE_PIXELS): 1 sizes, up to 16×8")
    assert not recwarn.list


@pytest.fixture
def folder(tmp_path):
    def write(**splits):
        for split, content in splits.items():
            for name in ("a", "b"):
                file = tmp_path / split / name / "1.img.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
        return DataSection(dataset=str(tmp_path), value_range=None)

    return write


def test_the_start_of_training_names_modes_and_values_and_rejects_dark_images(folder):
    data = resolve_data(folder(train=png(noise("u1", 0, 255)), test=tiff(noise("u2", 0, 4095))))
    with pytest.raises(UserError, match=r"values are 0 to 4,095 in test; write data\.value_range=\[0,4095\]"):
        quick_check(load_images(data), data, TransformSection())
    with pytest.raises(UserError, match=r"write data\.value_range=\[0,4095\]"):
        check_test_values(load_split(data, None), data, TransformSection())
    data = data.model_copy(update={"value_range": (0, 4095)})
    found = quick_check(load_images(data), data, TransformSection())
    assert found.values == "pixel values: train L 0 to 255, test I;16 0 to 4,095 of 0 to 4,095"
    counted = "deeper than 8 bits: 2 of 2 test images checked, read by data.value_range"
    assert (found.deep, found.notes) == ({"16-bit": (0, 4095)}, [counted, found.values])
    assert check_test_values(load_split(data, None), data, TransformSection()) == []


def test_slivers_are_listed(folder):
    data = resolve_data(folder(train=png(noise("u1", 0, 255)), test=png(np.zeros((400, 2, 3), np.uint8))))
    problems = quick_check(load_images(data), data, TransformSection()).problems
    assert sum("1.img.png: 2×400: a sliver" in line for line in problems) == 2
