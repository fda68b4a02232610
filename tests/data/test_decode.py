"""Decoding to RGB: every format and mode, orientation, and unreadable images."""

from __future__ import annotations

import io
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from cskd_hf.data.decode import Conversion, UnreadableImageError, decode

RGB = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes, mode: str = "RGB", background: object = "white") -> np.ndarray:
    image = decode({"bytes": data, "path": None}, Conversion(mode, background))
    assert image.mode == mode
    return np.asarray(image).astype(int)


def blocks(height: int = 5, width: int = 3) -> np.ndarray:
    """16-pixel blocks of distinct colours, which JPEG preserves within a few levels."""
    colours = np.random.default_rng(1).integers(20, 236, (height, width, 3), dtype=np.uint8)
    return colours.repeat(16, 0).repeat(16, 1)


def as_stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a camera stores, by EXIF's definition: "the 0th row is the visual …, the 0th column …"."""
    rows_are_columns = orientation >= 5
    bottom = orientation in (3, 4, 7, 8)  # the visual vertical axis is stored upwards
    right = orientation in (2, 3, 6, 7)  # the visual horizontal axis is stored leftwards
    stored = upright[:: -1 if bottom else 1, :: -1 if right else 1]
    return stored.swapaxes(0, 1) if rows_are_columns else stored


@pytest.mark.parametrize(
    ("stored", "kind"),
    [(RGB, "PNG"), (RGB, "WEBP"), (GREY, "PNG"), (GREY, "BMP"), (GREY, "TIFF"), (GREY > 127, "PNG")],
)
def test_lossless_formats_decode_exactly_and_grey_repeats_its_channel(stored, kind):
    expected = stored.reshape(12, 10, -1) * (255 if stored.dtype == bool else 1)
    assert (pixels(encode(Image.fromarray(stored), kind, lossless=True)) == expected).all()


@pytest.mark.parametrize(("background", "colour"), [("white", 255), ("#102030", (16, 32, 48)), ((9, 8, 7), (9, 8, 7))])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_on_the_background(background, colour, channels):
    stored = np.concatenate([RGB, RGB], -1)[..., 2 : 2 + channels]
    data = encode(Image.fromarray(stored, {2: "LA", 4: "RGBA"}[channels]), "PNG")
    share = stored[..., -1:] / 255
    shown = stored[..., :-1] * share + np.array(colour) * (1 - share)
    assert np.abs(pixels(data, background=background) - shown).max() <= 1
    assert (pixels(data, "RGBA", background) == (stored if channels == 4 else stored[..., [0, 0, 0, 1]])).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grey_is_the_luma_of_the_colours_and_no_alpha_is_opaque(kind):
    data = encode(Image.fromarray(blocks()), kind)
    colours = pixels(data)
    assert np.abs(pixels(data, "L") - colours @ [0.299, 0.587, 0.114]).max() <= 0.51
    assert (pixels(data, "RGBA") == np.concatenate([colours, np.full((*colours.shape[:2], 1), 255)], -1)).all()


@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_the_transparent_colour_of_a_png_shows_the_background(mode):
    image = Image.fromarray(RGB).convert(mode)
    key = image.getpixel((3, 2))
    shown = np.asarray(image.convert("RGB")).copy()
    transparent = (np.asarray(image).reshape(12, 10, -1) == np.array(key)).all(axis=2)
    shown[transparent] = (1, 2, 3)
    assert (pixels(encode(image, "PNG", transparency=key), background=(1, 2, 3)) == shown).all()


@pytest.mark.parametrize("transparency", [None, 2, bytes([255, 0, 128, 7])])
def test_palette_png_decodes_to_its_colours_without_a_warning(transparency):
    colours = RGB[0, :4]
    image = Image.fromarray((GREY % 4).astype(np.uint8), "L")
    image.putpalette(colours.tobytes())
    options = {} if transparency is None else {"transparency": transparency}
    data = encode(image, "PNG", **options)
    with Image.open(io.BytesIO(data)) as opened:
        assert opened.mode == "P"
        assert ("transparency" in opened.info) == (transparency is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pixels(data)
    alpha = {None: [255] * 4, 2: [255, 255, 0, 255]}.get(transparency) or [*transparency]
    share = np.array(alpha)[GREY % 4][..., None] / 255
    assert np.abs(found - (colours[GREY % 4] * share + 255 * (1 - share))).max() <= 1


def test_adobe_cmyk_jpeg_decodes_to_the_printed_colours():
    inks = np.concatenate([blocks(), blocks()[:, :, :1] // 3], axis=-1)
    data = encode(Image.fromarray(inks, "CMYK"), "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data
    cyan_magenta_yellow, black = inks[:, :, :3] / 255, inks[:, :, 3:] / 255
    expected = 255 * (1 - cyan_magenta_yellow) * (1 - black)
    assert np.abs(pixels(data) - expected).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(as_stored(blocks(), orientation)))
    decoded = pixels(encode(stored, "JPEG", quality=100, subsampling=0, exif=exif))
    assert decoded.shape == blocks().shape
    assert np.abs(decoded - blocks()).max() <= 5


def test_progressive_and_baseline_jpegs_decode_alike():
    baseline, progressive = (encode(Image.fromarray(blocks()), "JPEG", progressive=kind) for kind in (False, True))
    assert baseline != progressive
    assert (pixels(progressive) == pixels(baseline)).all()


def test_the_bytes_decide_the_format_not_the_extension(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encode(Image.fromarray(RGB), "PNG"))
    assert (np.asarray(decode({"bytes": None, "path": str(tmp_path / "a.jpg")})) == RGB).all()


def test_gif_decodes_to_its_first_frame():
    frames = [Image.fromarray(np.full((4, 4), level, dtype=np.uint8)) for level in (10, 200)]
    assert (pixels(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])) == 10).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_bytes_and_path_decode_alike_and_bytes_take_precedence(kind, tmp_path):
    data = encode(Image.fromarray(RGB), kind)
    path = tmp_path / "image with #, ä and [].bin"
    path.write_bytes(data)
    from_path = np.asarray(decode({"bytes": None, "path": str(path)}))
    assert (from_path == pixels(data)).all()
    path.write_bytes(b"no image")
    assert (np.asarray(decode({"bytes": data, "path": str(path)})) == from_path).all()


def assert_unreadable(image: dict[str, object]) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        decode(image)
    message = str(caught.value)
    assert message.strip()
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_unreadable(progressive):
    data = encode(Image.fromarray(RGB), "JPEG", progressive=progressive)
    for cut in range(0, len(data) - 1, 7):
        assert_unreadable({"bytes": data[:cut], "path": None})


def test_a_truncated_png_is_unreadable_or_complete():
    data = encode(Image.fromarray(RGB), "PNG")
    after_pixels = 4 + 12 + 4  # zlib's checksum, the chunk's checksum and the end chunk carry no pixels
    for cut in range(len(data)):
        if cut < len(data) - after_pixels - 1:
            assert_unreadable({"bytes": data[:cut], "path": None})
        else:
            try:
                assert (pixels(data[:cut]) == RGB).all()
            except UnreadableImageError:
                continue


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_bytes_decode_or_are_unreadable(kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    whole = encode(Image.fromarray(RGB), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    random = np.random.RandomState(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        num_unreadable = 0
        for _ in range(150):
            damaged = np.frombuffer(whole, dtype=np.uint8).copy()
            damaged[random.randint(min(len(damaged), 200), size=4)] = random.randint(256, size=4)
            try:
                decode({"bytes": damaged.tobytes(), "path": None})
            except UnreadableImageError as error:
                assert len(str(error).splitlines()) == 1  # noqa: PT017
                num_unreadable += 1
    assert num_unreadable > 0


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_leaves_the_image_as_it_is_stored(kind):
    entries = struct.pack(">HHII", 0x0100, 2, 10**6, 0xFFFFFF) + struct.pack(">HHI4s", 0x0112, 2, 4, b"abc\0")
    for exif in (b"MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries, b"MM\0*\xff\xff\xff\xff", b"\xff" * 40):
        data = encode(Image.fromarray(RGB), kind, exif=b"Exif\0\0" + exif)
        assert pixels(data).shape == RGB.shape


def test_an_orientation_next_to_broken_exif_is_applied():
    """Found by fuzzing: Pillow rotates the image, then fails to write its EXIF."""
    entries = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16) + struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0")
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2) + entries + b"\0\0\0\0"
    assert pixels(encode(Image.fromarray(RGB), "JPEG", exif=exif)).shape == (10, 12, 3)


@pytest.mark.parametrize("data", [b"", b"\0", b"not an image\n" * 100, b"<html>404</html>"])
def test_the_message_for_non_images_is_reproducible(data):
    """Pillow's own shows the buffer's address."""
    messages = {assert_unreadable({"bytes": data + b" " * more, "path": None}) for more in range(2)}
    assert len(messages) == 1
    assert "0x" not in messages.pop()


def test_text_files_folders_missing_files_and_rows_without_either_are_unreadable(tmp_path):
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "notes.jpg").write_text("no image")
    assert_unreadable({"bytes": None, "path": str(tmp_path / "notes.jpg")})
    assert_unreadable({"bytes": None, "path": str(tmp_path)})
    assert_unreadable({"bytes": None, "path": str(tmp_path / "link.jpg")})
    assert "gone.jpg" in assert_unreadable({"bytes": None, "path": str(tmp_path / "gone.jpg")})
    assert "neither" in assert_unreadable({"bytes": None, "path": None})


def test_a_decompression_bomb_is_unreadable(monkeypatch):
    data = encode(Image.fromarray(RGB), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert "120 pixels" in assert_unreadable({"bytes": data, "path": None})


def test_out_of_memory_is_not_blamed_on_the_image(monkeypatch):
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        decode({"bytes": b"", "path": None})
