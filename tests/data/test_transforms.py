"""Shape and type of a transform's result, and the paper's evaluation transform: resize and centre crop."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision import transforms as tv
from transform_cases import NOISE, SEED, WILD, encoded, transform

from cskd_hf.data.decode import UnreadableImageError


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        *({}, {"input_size": (3, 24, 40)}, {"crop_padding": 2}, {"interpolation": "random"}),
        {"input_size": (1, 24, 40), "auto_augment": "rand-m6-mstd0.5-inc1"},
        {"input_size": (4, 24, 40), "re_prob": 1.0, "re_mode": "pixel"},
    ],
)
@pytest.mark.parametrize("shape", [(300, 400), (200, 30), (10, 7), (1, 1)])
def test_output_is_uint8_channels_first_of_the_input_size(is_training, settings, shape):
    result = transform(is_training, **settings)(encoded(NOISE[: shape[0], : shape[1]]), SEED)
    assert result.dtype == torch.uint8
    assert tuple(result.shape) == settings.get("input_size", (3, 224, 224))


@pytest.mark.parametrize(
    "settings", [{}, {"auto_augment": "rand-m6-mstd0.5-inc1"}, {"crop_padding": 2, "re_prob": 1.0}]
)
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("shape", [(300, 400), (10, 300)])
def test_memory_of_another_size_gets_the_pixels_of_a_transform_to_that_size(is_training, settings, shape):
    image, out = encoded(NOISE[: shape[0], : shape[1]]), torch.empty(20, 28, 3, dtype=torch.uint8)
    augment = transform(is_training, input_size=(3, 40, 56), **settings)
    before = augment(image, SEED)
    augment.write(image, SEED, out)
    expected = transform(is_training, input_size=(3, 20, 28), **settings)(image, SEED)
    assert torch.equal(out.permute(2, 0, 1), expected)
    assert torch.equal(augment(image, SEED), before)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_one_pixel_image_is_enlarged_to_its_colour(is_training):
    result = transform(is_training, input_size=(3, 8, 8))(encoded(NOISE[:1, :1]), SEED)
    assert (result == torch.tensor(NOISE[0, 0])[:, None, None]).all()


def test_unreadable_bytes_raise_unreadable_image_error():
    for is_training in (True, False):
        with pytest.raises(UnreadableImageError):
            transform(is_training)({"bytes": b"x", "path": None}, SEED)


# Evaluation


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def stored_images() -> dict[str, bytes]:
    """Small images of many modes, with and without alpha."""
    array = np.resize(NOISE, (40, 60, 4))
    rgb, rgba, grey = Image.fromarray(array[..., :3].copy()), Image.fromarray(array), Image.fromarray(array[..., 0])
    palette = Image.fromarray(array[..., 0] % 4)
    palette.putpalette(array[0, :4, :3].tobytes())
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "RGBA": encode(rgba, "PNG", exif=turned),
        "LA": encode(Image.fromarray(array[..., :2].copy(), "LA"), "PNG"),
        "transparent grey": encode(grey, "PNG", transparency=int(array[0, 0, 0])),
        "transparent colour": encode(rgb, "PNG", transparency=tuple(map(int, array[0, 0, :3]))),
        "transparent bit": encode(grey.convert("1"), "PNG", transparency=1),
        "palette": encode(palette, "PNG", transparency=bytes([255, 0, 128, 7])),
        "GIF": encode(palette, "GIF", transparency=1),
        "CMYK": encode(Image.fromarray(array, "CMYK"), "JPEG"),
        "JPEG": encode(rgb, "JPEG"),
        "grey JPEG": encode(grey, "JPEG"),
        "LAB": encode(Image.fromarray(array[..., :3].copy(), "LAB"), "TIFF"),
    }


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("crop_mode", ["center", "border"])
def test_evaluation_shows_what_the_cards_code_shows(channels, crop_mode):
    settings = {"crop_mode": crop_mode, "crop_pct": 0.9, "interpolation": "bicubic", "mean": (0.5,) * channels}
    ours = transform(False, input_size=(channels, 24, 40), background=(10, 200, 30), **settings)
    theirs = create_transform((channels, 24, 40), **settings, std=(1,) * channels)
    for name, content in stored_images().items():
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
        if channels == 4:
            image = image.convert("RGBA")
        elif image.has_transparency_data:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (10, 200, 30)), image.convert("RGBA"))
        image = image if channels == 4 else image.convert("RGB")
        expected = theirs(image.convert("L") if channels == 1 else image)
        assert torch.allclose(ours({"bytes": content, "path": None}, SEED) / 255 - 0.5, expected, atol=1e-6), name


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256), (231, 257), (100, 60)])
def test_the_evaluation_transform_is_the_papers_bit_for_bit(shape):
    array = np.resize(NOISE, (*shape, 3))
    paper = tv.Compose(
        [tv.Resize(256, tv.InterpolationMode.BILINEAR, antialias=True), tv.CenterCrop(224), tv.PILToTensor()]
    )
    assert torch.equal(transform(False)(encoded(array), SEED), paper(Image.fromarray(array)))


@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(3, 32, 32), (3, 24, 40)])
@pytest.mark.parametrize("shape", [(60, 80), (16, 256), (256, 16)])
def test_evaluation_is_timms_bit_for_bit_up_to_an_aspect_ratio_of_16(crop_mode, size, shape):
    array, settings = NOISE[: shape[0], : shape[1]], {"crop_mode": crop_mode, "mean": (0.1, 0.5, 0.9)}
    timms = create_transform(
        size, is_training=False, crop_pct=0.9, interpolation="bicubic", use_prefetcher=True, **settings
    )
    ours = transform(False, input_size=size, crop_pct=0.9, interpolation="bicubic", std=(1.0,) * 3, **settings)
    assert torch.equal(ours(encoded(array), SEED), torch.as_tensor(timms(Image.fromarray(array))))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "crop_pct"), [((3, 32, 32), 0.875), ((3, 24, 40), 0.95), ((3, 48, 48), 1.0)])
@pytest.mark.parametrize("shape", [(5, 777), (777, 5), (20, 1001), (1001, 20), (1, 90), (400, 7)])
def test_slivers_are_cropped_before_they_are_resized_with_timms_pixels(interpolation, size, crop_pct, shape):
    array = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    timms = create_transform(
        size, is_training=False, crop_pct=crop_pct, interpolation=interpolation, use_prefetcher=True
    )
    ours = transform(False, input_size=size, crop_pct=crop_pct, interpolation=interpolation)(encoded(array), SEED)
    difference = (ours.int() - torch.as_tensor(timms(Image.fromarray(array))).int()).abs()
    assert difference.max() <= 2
    assert (difference > 1).float().mean() < 1e-3


def test_a_sliver_of_20000_pixels_takes_little_memory(monkeypatch):
    sizes, resize = [], Image.Image.resize

    def watched(image, size, *arguments, **options):
        sizes.append(size[0] * size[1])
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    transform(False)(encoded(np.zeros((20_000, 1, 3), np.uint8)), SEED)
    assert sizes == [224 * 20_000, 224 * 224]


def test_random_interpolation_is_bilinear_in_evaluation():
    image = encoded(NOISE)
    assert torch.equal(transform(False, interpolation="random")(image, 0), transform(False)(image, 1))
    assert not torch.equal(transform(False, interpolation="bicubic")(image, 0), transform(False)(image, 0))


def test_the_evaluation_transform_ignores_seed_and_augmentation():
    result = transform(False, **WILD)
    plain = transform(False, input_size=(3, 24, 24))
    assert torch.equal(result(encoded(NOISE), 1), plain(encoded(NOISE), 2))


def test_tiny_imagenet_is_resized_to_32_px_without_a_crop():
    """As in the paper, which evaluates TinyImageNet at Resize(32)."""
    array = NOISE[:64, :64]
    expected = tv.PILToTensor()(tv.Resize(32, tv.InterpolationMode.BILINEAR)(Image.fromarray(array)))
    assert torch.equal(transform(False, input_size=(3, 32, 32), crop_pct=1.0)(encoded(array), SEED), expected)
