from __future__ import annotations

import io
import math
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from scipy.ndimage import gaussian_filter
from torchvision import transforms as tv

from cskd_hf.data.decode import UnreadableImageError
from cskd_hf.data.transforms import Transform
from cskd_hf.recipe_sections import TransformSection

NOISE = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
SMALL = NOISE[:32, :32]
SEED = 2**62 + 12345


def encoded(array: np.ndarray) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def transform(is_training: bool, **settings: object) -> Transform:
    return Transform(TransformSection.model_validate(settings), is_training)


def train_at_32(**settings: object) -> Transform:
    return transform(True, input_size=(3, 32, 32), crop_padding=4, **settings)


def assert_within_a_level(made: torch.Tensor, expected: torch.Tensor) -> None:
    """torch's antialiased resize against Pillow's: one level at most, and few of them."""
    difference = (made.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().square().mean() < 0.065  # 60 dB


# Every kind of randomness at once: random crop, resampling filter, both flips, RandAugment's own draws.
WILD = {"input_size": (3, 24, 24), "vflip": 0.5, "auto_augment": "rand-m6-mstd0.5-inc1", "interpolation": "random"}


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "settings", [{}, {"input_size": (3, 24, 40)}, {"crop_padding": 2}, {"interpolation": "random"}]
)
@pytest.mark.parametrize("shape", [(300, 400), (200, 30), (10, 7), (1, 1)])
def test_output_is_uint8_channels_first_of_the_input_size(is_training, settings, shape):
    made = transform(is_training, **settings)(encoded(NOISE[: shape[0], : shape[1]]), SEED)
    assert made.dtype == torch.uint8
    assert tuple(made.shape) == settings.get("input_size", (3, 224, 224))


@pytest.mark.parametrize("is_training", [True, False])
def test_one_pixel_becomes_an_image_of_its_colour(is_training):
    made = transform(is_training, input_size=(3, 8, 8))(encoded(NOISE[:1, :1]), SEED)
    assert (made == torch.tensor(NOISE[0, 0])[:, None, None]).all()


def test_greyscale_has_three_equal_channels():
    made = transform(True)(encoded(NOISE[:, :, 0]), SEED)
    assert (made[0] == made[1]).all()
    assert (made[0] == made[2]).all()


def test_unreadable_bytes_stay_an_unreadable_image():
    for is_training in (True, False):
        with pytest.raises(UnreadableImageError):
            transform(is_training)({"bytes": b"x", "path": None}, SEED)


# purity


@pytest.mark.parametrize("settings", [{}, WILD, {**WILD, "auto_augment": None, "color_jitter": 0.4}])
def test_equal_seeds_give_equal_pixels_whatever_was_drawn_before(settings):
    image = encoded(NOISE)
    first = transform(True, **settings)
    expected = [first(image, seed) for seed in (SEED, 7)]
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    again = transform(True, **settings)
    again(encoded(SMALL), 5)
    assert torch.equal(again(image, 7), expected[1])
    random.random(), np.random.rand(), torch.rand(1)
    assert torch.equal(again(image, SEED), expected[0])
    assert torch.equal(first(image, 7), expected[1])


@pytest.mark.parametrize("settings", [{}, WILD, {"input_size": (3, 32, 32), "crop_padding": 4}])
def test_other_seeds_give_other_pixels(settings):
    image, made = encoded(NOISE), transform(True, **settings)
    # Seeds that differ in their high bits only, as hashes do, and by one, as an anchor's and a partner's do.
    seeds = [0, 1, 2**32, 2**62, SEED, SEED + 1, 2**63 - 1, 2**63]
    different = {made(image, seed).numpy().tobytes() for seed in seeds}
    assert len(different) >= (len(seeds) if "crop_padding" not in settings else 4)


@pytest.mark.parametrize("auto_augment", [None, "rand-m6-mstd0.5-inc1"])
@pytest.mark.parametrize("is_training", [True, False])
def test_global_generators_are_left_untouched(is_training, auto_augment):
    made = transform(
        is_training, input_size=(3, 16, 16), auto_augment=auto_augment, color_jitter=None if auto_augment else 0.4
    )
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(3).tolist()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    made(encoded(SMALL), SEED)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


def test_global_generators_are_left_untouched_by_an_unreadable_image(monkeypatch):
    made = transform(True, input_size=(3, 16, 16), color_jitter=0.4)
    monkeypatch.setattr(made, "_transform", lambda _: len(random.random()))  # fails after drawing
    random.seed(1), torch.manual_seed(3)
    expected = random.random(), torch.rand(1).item()
    random.seed(1), torch.manual_seed(3)
    with pytest.raises(TypeError):
        made(encoded(SMALL), SEED)
    assert (random.random(), torch.rand(1).item()) == expected


# tests


@pytest.mark.parametrize("shape", [(300, 400), (400, 300), (256, 256), (231, 257), (100, 60)])
def test_test_transform_is_the_papers_resize_256_and_centre_crop_224_bit_for_bit(shape):
    array = np.resize(NOISE, (*shape, 3))
    paper = tv.Compose(
        [tv.Resize(256, tv.InterpolationMode.BILINEAR, antialias=True), tv.CenterCrop(224), tv.PILToTensor()]
    )
    assert torch.equal(transform(False)(encoded(array), SEED), paper(Image.fromarray(array)))


def test_random_interpolation_is_bilinear_in_tests():
    image = encoded(NOISE)
    assert torch.equal(transform(False, interpolation="random")(image, 0), transform(False)(image, 1))
    assert not torch.equal(transform(False, interpolation="bicubic")(image, 0), transform(False)(image, 0))


def test_test_transform_is_the_same_for_every_seed_and_augments_nothing():
    made = transform(False, **WILD)
    plain = transform(False, input_size=(3, 24, 24))
    assert torch.equal(made(encoded(NOISE), 1), plain(encoded(NOISE), 2))


def test_an_image_of_the_test_size_is_left_alone():
    made = transform(False, input_size=(3, 32, 32), crop_pct=1.0)(encoded(SMALL), SEED)
    assert (made.numpy() == SMALL.transpose(2, 0, 1)).all()


def test_tiny_images_in_64_px_are_resized_to_32_for_tests():
    """The paper tests TinyImageNet at Resize(32): no crop."""
    array = NOISE[:64, :64]
    expected = tv.PILToTensor()(tv.Resize(32, tv.InterpolationMode.BILINEAR)(Image.fromarray(array)))
    assert torch.equal(transform(False, input_size=(3, 32, 32), crop_pct=1.0)(encoded(array), SEED), expected)


def test_oblong_input_keeps_the_aspect_ratio_in_tests():
    horizontal, vertical = np.meshgrid(np.arange(200.0), np.arange(100.0))
    array = np.stack([horizontal, 2 * vertical, 0 * vertical], axis=-1).astype(np.uint8)
    made = transform(False, input_size=(3, 40, 80), crop_pct=1.0)(encoded(array), SEED).numpy().astype(float)
    # A pixel of the output is 2.5 pixels of the image in both directions.
    assert np.diff(made[0, 20, 10:70]).mean() == pytest.approx(2.5, abs=0.05)
    assert np.diff(made[1, 5:35, 40]).mean() == pytest.approx(2 * 2.5, abs=0.1)


# the paper's 32-px training: pad by 4, crop back, flip


def shifts(array: np.ndarray, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """The bytes of every crop of the zero-padded image → (top, left, flipped)."""
    height, width, _ = array.shape
    padded = np.pad(array, [(padding, padding), (padding, padding), (0, 0)])
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width].transpose(2, 0, 1)
            found[crop.tobytes()] = (top, left, False)
            found[np.ascontiguousarray(crop[:, :, ::-1]).tobytes()] = (top, left, True)
    assert len(found) == 2 * (2 * padding + 1) ** 2
    return found


def test_crop_padding_shifts_the_zero_padded_image_by_each_of_81_and_flips_half():
    known, made, image = shifts(SMALL, 4), train_at_32(), encoded(SMALL)
    seen = [known[made(image, seed).numpy().tobytes()] for seed in range(1000)]  # any resampling is a KeyError
    assert {(top, left) for top, left, _ in seen} == {(top, left) for top in range(9) for left in range(9)}
    places = np.bincount([9 * top + left for top, left, _ in seen], minlength=81)
    assert stats.chisquare(places).pvalue > 1e-3
    assert abs(sum(flipped for _, _, flipped in seen[:400]) - 200) < 40


@pytest.mark.parametrize(("hflip", "flipped"), [(0.0, {False}), (1.0, {True})])
def test_hflip_is_a_probability(hflip, flipped):
    known, made = shifts(SMALL, 4), train_at_32(hflip=hflip)
    assert {known[made(encoded(SMALL), seed).numpy().tobytes()][2] for seed in range(30)} == flipped


def test_vflip_turns_upside_down():
    known = shifts(SMALL, 4)
    made = train_at_32(hflip=0.0, vflip=1.0)(encoded(SMALL), SEED).flip(1)
    assert made.numpy().tobytes() in shifts(SMALL, 4)
    assert made.flip(1).numpy().tobytes() not in known


def test_crop_padding_resizes_other_sizes_to_the_input_first():
    array = NOISE[:64, :48]
    resized = np.asarray(Image.fromarray(array).resize((32, 32), Image.Resampling.BILINEAR))
    known = shifts(resized, 2)
    made = transform(True, input_size=(3, 32, 32), crop_padding=2)
    assert all(made(encoded(array), seed).numpy().tobytes() in known for seed in range(20))


# RandomResizedCrop


def measured_crops(made: Transform, height: int, width: int, seeds: range) -> np.ndarray:
    """(N, 4) left, top, width, height of each crop, read off an image whose colours are its coordinates."""
    horizontal, vertical = np.meshgrid(np.arange(width), np.arange(height))
    image = encoded(np.stack([horizontal, vertical, 0 * vertical], axis=-1).astype(np.uint8))
    crops = []
    for seed in seeds:
        out = made(image, seed).numpy().astype(float)
        size = out.shape[-1]
        inner = np.arange(2, size - 2)  # the filter is cut off at the edges
        centre = inner + 0.5 - size / 2
        across, down = out[0][np.ix_(inner, inner)].mean(0), out[1][np.ix_(inner, inner)].mean(1)
        crop_width, crop_height = (size * np.polyfit(centre, values, 1)[0] for values in (across, down))
        left, top = across.mean() + 0.5 - crop_width / 2, down.mean() + 0.5 - crop_height / 2
        crops.append((left, top, crop_width, crop_height))
    return np.array(crops)


def crops_by_torchvisions_law(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], num: int
) -> np.ndarray:
    """(num, 4) left, top, width, height: area share uniform, log ratio uniform, ten tries, a place uniform."""
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
            raise AssertionError("the fallback is left out of this sampler: choose shapes that never need it")
    return np.array(crops, dtype=float)


@pytest.mark.parametrize(
    ("scale", "ratio", "num"), [((0.08, 1.0), (3 / 4, 4 / 3), 2000), ((0.3, 0.6), (0.9, 1.5), 600)]
)
def test_random_resized_crop_obeys_torchvisions_law(scale, ratio, num):
    height, width = 230, 250
    made = transform(True, input_size=(3, 16, 16), hflip=0.0, scale=scale, ratio=ratio)
    found = measured_crops(made, height, width, range(num))
    expected = crops_by_torchvisions_law(height, width, scale, ratio, 10 * num)

    def laws(crops: np.ndarray) -> dict[str, np.ndarray]:
        left, top, w, h = crops.T
        roomy = (w < 0.9 * width) & (h < 0.9 * height)  # where a place means something
        return {
            "area share": w * h / (height * width),
            "log ratio": np.log(w / h),
            "place across": (left / (width - w))[roomy],
            "place down": (top / (height - h))[roomy],
        }

    with np.errstate(divide="ignore", invalid="ignore"):
        found_laws, expected_laws = laws(found), laws(expected)
    for name, values in found_laws.items():
        assert stats.ks_2samp(values, expected_laws[name]).pvalue > 1e-3, name


def test_the_crop_of_an_image_too_oblong_for_any_ratio_is_its_middle():
    array = np.zeros((20, 200, 3), dtype=np.uint8)
    array[:, 87:113] = 255  # 4:3 of the full height, 27 pixels wide, around the centre
    made = transform(True, input_size=(3, 8, 8), hflip=0.0, scale=(1.0, 1.0))
    assert (made(encoded(array), SEED)[:, :, 1:-1] == 255).all()


def photograph(height: int, width: int, quality: int) -> dict[str, object]:
    """A JPEG that is smooth in most places, 4:2:0."""
    draws = np.random.default_rng(2).normal(size=(height, width, 3))
    pixels = (gaussian_filter(draws, (4, 4, 0)) * 400 + draws * 5 + 128).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_a_training_crop_is_pillows_own_of_some_box_within_a_level(name):
    """The box is read off the pixels' own coordinates, then cut out of the photograph with Pillow alone."""
    height, width, size = 230, 250, 96
    made = transform(True, input_size=(3, size, size), hflip=1.0, interpolation=name)
    image = photograph(height, width, 92)
    whole = Image.open(io.BytesIO(image["bytes"]))
    plain = transform(True, input_size=(3, size, size), hflip=1.0)
    errors = []
    for seed in range(12):
        # With flips, columns run backwards: the fitted width is negative, and left is the right edge.
        (right, top, minus_width, crop_height), *_ = measured_crops(plain, height, width, range(seed, seed + 1)).round()
        box = (right + minus_width, top, right, top + crop_height)
        filter_ = getattr(Image.Resampling, name.upper())
        expected = np.array(whole.crop(tuple(map(int, box))).resize((size, size), filter_))[:, ::-1]
        errors.append(made(image, seed).numpy().astype(int) - expected.transpose(2, 0, 1))
    assert np.abs(errors).max() <= 1
    assert np.square(errors).mean() < 0.065  # 60 dB


def test_the_same_pixels_stored_as_png_and_as_jpeg_get_the_same_crops():
    image = photograph(120, 160, 90)
    png = encoded(np.asarray(Image.open(io.BytesIO(image["bytes"]))))
    for is_training in (True, False):
        made = transform(is_training, input_size=(3, 48, 48))
        assert all(torch.equal(made(image, seed), made(png, seed)) for seed in range(5))


# colour


def test_there_is_no_colour_jitter_by_default():
    """timm's own default is 0.4."""
    flat = np.full((40, 40, 3), (200, 100, 50), dtype=np.uint8)
    for made in (transform(True, input_size=(3, 16, 16)), train_at_32(hflip=0.5)):
        colours = {tuple(made(encoded(flat), seed)[:, 8, 8].tolist()) for seed in range(30)}
        assert colours == {(200, 100, 50)}


@pytest.mark.parametrize("crop_padding", [None, 4])
@pytest.mark.parametrize("setting", [{"color_jitter": 0.4}, {"auto_augment": "rand-m9-n2"}])
def test_colour_settings_act_and_are_a_function_of_the_seed(setting, crop_padding):
    array = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    array[::2] = (90, 160, 30)
    made = transform(True, input_size=(3, 32, 32), crop_padding=crop_padding, **setting)
    plain = transform(True, input_size=(3, 32, 32), crop_padding=crop_padding)
    image = encoded(array)
    pictures = [made(image, seed) for seed in range(20)]
    unchanged = sum(torch.equal(picture, plain(image, seed)) for seed, picture in enumerate(pictures))
    assert unchanged < 10
    assert len({picture.numpy().tobytes() for picture in pictures}) > 10
    assert all(torch.equal(made(image, seed), picture) for seed, picture in enumerate(pictures))


def test_a_stronger_colour_jitter_spreads_colours_wider():
    image = encoded(np.full((8, 8, 3), 128, dtype=np.uint8))

    def spread(color_jitter: float) -> float:
        made = transform(True, input_size=(3, 8, 8), color_jitter=color_jitter)
        return float(np.std([made(image, seed).float().mean().item() for seed in range(60)]))

    assert spread(0.0) == 0
    assert 0 < 2 * spread(0.1) < spread(0.4)


@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_interpolation_chooses_the_filter_of_the_training_crop(name):
    """At scale 1 and the image's own ratio the crop is the whole image, resized."""
    array = NOISE[:60, :60]
    settings = {"input_size": (3, 24, 24), "scale": (1.0, 1.0), "ratio": (1.0, 1.0), "hflip": 0.0}
    bilinear, bicubic = (
        torch.from_numpy(np.array(Image.fromarray(array).resize((24, 24), kind)).transpose(2, 0, 1))
        for kind in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    )
    made = transform(True, **settings, interpolation=name)(encoded(array), SEED)
    assert_within_a_level(made, bilinear if name == "bilinear" else bicubic)
    assert (bilinear.int() - bicubic.int()).abs().max() > 10
    both = transform(True, **settings, interpolation="random")
    seen = {both(encoded(array), seed).numpy().tobytes() for seed in range(20)}
    assert len(seen) == 2
    assert made.numpy().tobytes() in seen
