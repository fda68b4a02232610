"""Training crops: the paper's padded crop at 32 px, and RandomResizedCrop."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from transform_cases import NOISE, SEED, SMALL, encoded, photograph, train_at_32, transform

from cskd_hf.data.transforms import Transform

# The paper's 32-px training: pad by 4, crop back, flip


def shifts(array: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Bytes of every crop of the zero-padded image → (top, left, flipped)."""
    height, width, _ = array.shape
    padded = np.pad(array, [(padding, padding), (padding, padding), (0, 0)])
    crops = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width].transpose(2, 0, 1)
            crops[crop.tobytes()] = (top, left, False)
            crops[np.ascontiguousarray(crop[:, :, ::-1]).tobytes()] = (top, left, True)
    assert len(crops) == 2 * (2 * padding + 1) ** 2
    return crops


def test_crop_padding_draws_all_81_shifts_uniformly_and_flips_half():
    known, augment, image = shifts(SMALL, 4), train_at_32(), encoded(SMALL)
    # A resampled crop would be a KeyError.
    drawn = [known[augment(image, seed).numpy().tobytes()] for seed in range(1000)]
    assert {(top, left) for top, left, _ in drawn} == {(top, left) for top in range(9) for left in range(9)}
    counts = np.bincount([9 * top + left for top, left, _ in drawn], minlength=81)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert abs(sum(flipped for _, _, flipped in drawn[:400]) - 200) < 40


@pytest.mark.parametrize(("hflip", "flipped"), [(0.0, {False}), (1.0, {True})])
def test_hflip_is_a_probability(hflip, flipped):
    known, augment = shifts(SMALL, 4), train_at_32(hflip=hflip)
    assert {known[augment(encoded(SMALL), seed).numpy().tobytes()][2] for seed in range(30)} == flipped


def test_vflip_flips_vertically():
    known = shifts(SMALL, 4)
    result = train_at_32(hflip=0.0, vflip=1.0)(encoded(SMALL), SEED).flip(1)
    assert result.numpy().tobytes() in shifts(SMALL, 4)
    assert result.flip(1).numpy().tobytes() not in known


def test_crop_padding_first_resizes_to_the_input_size():
    array = NOISE[:64, :48]
    resized = np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BILINEAR))
    known = shifts(resized, 2)
    augment = transform(True, input_size=(3, 32, 32), crop_padding=2)
    assert all(augment(encoded(array), seed).numpy().tobytes() in known for seed in range(20))


# RandomResizedCrop


def measured_crops(augment: Transform, height: int, width: int, seeds: range) -> np.ndarray:
    """(N, 4) left, top, width, height of each crop, measured on an image whose colours are its coordinates."""
    horizontal, vertical = np.meshgrid(np.arange(width), np.arange(height))
    image = encoded(np.stack([horizontal, vertical, 0 * vertical], axis=-1).astype(np.uint8))
    crops = []
    for seed in seeds:
        out = augment(image, seed).numpy().astype(float)
        size = out.shape[-1]
        inner = np.arange(2, size - 2)  # the filter is cut off at the edges
        centre = inner + 0.5 - size / 2
        across, down = out[0][np.ix_(inner, inner)].mean(0), out[1][np.ix_(inner, inner)].mean(1)
        crop_width, crop_height = (size * np.polyfit(centre, values, 1)[0] for values in (across, down))
        left, top = across.mean() + 0.5 - crop_width / 2, down.mean() + 0.5 - crop_height / 2
        crops.append((left, top, crop_width, crop_height))
    return np.array(crops)


def torchvision_crops(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], num: int
) -> np.ndarray:
    """(num, 4) left, top, width, height: area and log ratio uniform, ten tries, then the position uniform."""
    generator, crops = np.random.default_rng(0), []
    while len(crops) < num:
        for _ in range(10):
            area = generator.uniform(*scale) * height * width
            aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if w <= width and h <= height:
                crops.append((generator.integers(0, width - w + 1), generator.integers(0, height - h + 1), w, h))
                break
        else:
            raise AssertionError("this sampler has no fallback: choose shapes that never need it")
    return np.array(crops, dtype=float)


@pytest.mark.parametrize(
    ("scale", "ratio", "num"), [((0.08, 1.0), (3 / 4, 4 / 3), 1000), ((0.3, 0.6), (0.9, 1.5), 600)]
)
def test_random_resized_crop_has_torchvisions_distribution(scale, ratio, num):
    height, width = 230, 250
    augment = transform(True, input_size=(3, 16, 16), hflip=0.0, scale=scale, ratio=ratio)
    drawn = measured_crops(augment, height, width, range(num))
    expected = torchvision_crops(height, width, scale, ratio, 10 * num)

    def statistics(crops: np.ndarray) -> dict[str, np.ndarray]:
        left, top, w, h = crops.T
        roomy = (w < 0.9 * width) & (h < 0.9 * height)  # crops that nearly fill the image have no room to move
        return {
            "area share": w * h / (height * width),
            "log ratio": np.log(w / h),
            "horizontal position": (left / (width - w))[roomy],
            "vertical position": (top / (height - h))[roomy],
        }

    with np.errstate(divide="ignore", invalid="ignore"):
        measured, reference = statistics(drawn), statistics(expected)
    for name, values in measured.items():
        assert stats.ks_2samp(values, reference[name]).pvalue > 1e-3, name


def test_the_crop_of_a_too_oblong_image_is_central():
    array = np.zeros((20, 200, 3), dtype=np.uint8)
    array[:, 87:113] = 255  # 4:3 of the full height, 27 pixels wide, around the centre
    augment = transform(True, input_size=(3, 8, 8), hflip=0.0, scale=(1.0, 1.0))
    assert (augment(encoded(array), SEED)[:, :, 1:-1] == 255).all()


def jpeg(height: int, width: int, quality: int) -> dict[str, object]:
    """A photograph, 4:2:0."""
    buffer = io.BytesIO()
    Image.fromarray(photograph(height, width)).save(buffer, "JPEG", quality=quality)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_a_training_crop_is_pillows_within_a_level(name):
    """The box is measured on an image of coordinates, then cropped from the photograph with Pillow alone."""
    height, width, size = 230, 250, 96
    augment = transform(True, input_size=(3, size, size), hflip=1.0, interpolation=name)
    image = jpeg(height, width, 92)
    whole = Image.open(io.BytesIO(image["bytes"]))
    plain = transform(True, input_size=(3, size, size), hflip=1.0)
    errors = []
    for seed in range(12):
        # Flipped columns run backwards: the fitted width is negative, and `left` is the right edge.
        (right, top, minus_width, crop_height), *_ = measured_crops(plain, height, width, range(seed, seed + 1)).round()
        box = (right + minus_width, top, right, top + crop_height)
        filter_ = getattr(Image.Resampling, name.upper())
        expected = np.array(whole.crop(tuple(map(int, box))).resize((size, size), filter_))[:, ::-1]
        errors.append(augment(image, seed).numpy().astype(int) - expected.transpose(2, 0, 1))
    assert np.abs(errors).max() <= 1
    assert np.square(errors).mean() < 0.065  # 60 dB


def test_png_and_jpeg_of_the_same_pixels_get_the_same_crops():
    image = jpeg(120, 160, 90)
    png = encoded(np.asarray(Image.open(io.BytesIO(image["bytes"]))))
    for is_training in (True, False):
        augment = transform(is_training, input_size=(3, 48, 48))
        assert all(torch.equal(augment(image, seed), augment(png, seed)) for seed in range(5))


def assert_within_a_level(result: torch.Tensor, expected: torch.Tensor) -> None:
    """torch's antialiased resize against Pillow's: at most one level, and rarely."""
    difference = (result.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().square().mean() < 0.065  # 60 dB


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_interpolation_selects_the_filter_of_the_training_crop(name):
    """At scale 1 and the image's own ratio the crop is the whole image, resized."""
    array = NOISE[:60, :60]
    settings = {"input_size": (3, 24, 24), "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    bilinear, bicubic = (
        torch.from_numpy(np.array(Image.fromarray(array).resize((24, 24), kind)).transpose(2, 0, 1))
        for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    )
    result = transform(True, **settings, interpolation=name)(encoded(array), SEED)
    assert_within_a_level(result, bilinear if name == "bilinear" else bicubic)
    assert (bilinear.int() - bicubic.int()).abs().max() > 10
    both = transform(True, **settings, interpolation="random")
    drawn = {both(encoded(array), seed).numpy().tobytes() for seed in range(20)}
    assert len(drawn) == 2
    assert result.numpy().tobytes() in drawn
