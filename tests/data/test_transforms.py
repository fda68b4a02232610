"""Shape and type of a transform's result, and the paper's evaluation transform: resize and centre crop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as tv
from transform_cases import NOISE, SEED, SMALL, WILD, encoded, transform

from cskd_hf.data.decode import UnreadableImageError


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"input_size": (3, 24, 40)}, {"crop_padding": 2}, {"interpolation": "random"}]
)
@pytest.mark.parametrize("shape", [(300, 400), (200, 30), (10, 7), (1, 1)])
def test_output_is_uint8_channels_first_of_the_input_size(is_training, settings, shape):
    result = transform(is_training, **settings)(encoded(NOISE[: shape[0], : shape[1]]), SEED)
    assert result.dtype == torch.uint8
    assert tuple(result.shape) == settings.get("input_size", (3, 224, 224))


@pytest.mark.parametrize("is_training", [True, False])
def test_a_one_pixel_image_is_enlarged_to_its_colour(is_training):
    result = transform(is_training, input_size=(3, 8, 8))(encoded(NOISE[:1, :1]), SEED)
    assert (result == torch.tensor(NOISE[0, 0])[:, None, None]).all()


def test_greyscale_has_three_equal_channels():
    result = transform(True)(encoded(NOISE[:, :, 0]), SEED)
    assert (result[0] == result[1]).all()
    assert (result[0] == result[2]).all()


def test_unreadable_bytes_raise_unreadable_image_error():
    for is_training in (True, False):
        with pytest.raises(UnreadableImageError):
            transform(is_training)({"bytes": b"x", "path": None}, SEED)


# Evaluation


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


def test_an_image_of_the_input_size_is_unchanged():
    result = transform(False, input_size=(3, 32, 32), crop_pct=1.0)(encoded(SMALL), SEED)
    assert (result.numpy() == SMALL.transpose(2, 0, 1)).all()


def test_tiny_imagenet_is_resized_to_32_px_without_a_crop():
    """As in the paper, which evaluates TinyImageNet at Resize(32)."""
    array = NOISE[:64, :64]
    expected = tv.PILToTensor()(tv.Resize(32, tv.InterpolationMode.BILINEAR)(Image.fromarray(array)))
    assert torch.equal(transform(False, input_size=(3, 32, 32), crop_pct=1.0)(encoded(array), SEED), expected)


def test_an_oblong_input_size_preserves_the_aspect_ratio():
    horizontal, vertical = np.meshgrid(np.arange(200.0), np.arange(100.0))
    array = np.stack([horizontal, 2 * vertical, 0 * vertical], axis=-1).astype(np.uint8)
    result = transform(False, input_size=(3, 40, 80), crop_pct=1.0)(encoded(array), SEED).numpy().astype(float)
    # A pixel of the output is 2.5 pixels of the image in both directions.
    assert np.diff(result[0, 20, 10:70]).mean() == pytest.approx(2.5, abs=0.05)
    assert np.diff(result[1, 5:35, 40]).mean() == pytest.approx(2 * 2.5, abs=0.1)
