"""A training image is a function of the file and the seed alone, colour augmentation included."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from transform_cases import NOISE, SEED, SMALL, WILD, encoded, train_at_32, transform


@pytest.mark.parametrize(
    "settings",
    [
        *({}, WILD, {**WILD, "auto_augment": None, "color_jitter": 0.4}),
        {**WILD, "auto_augment": "3a", "color_jitter": 0.3},
    ],
)
def test_equal_seeds_give_equal_pixels(settings):
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
def test_different_seeds_give_different_pixels(settings):
    image, augment = encoded(NOISE), transform(True, **settings)
    # Seeds that differ in high bits only, as hashes do, and by one, as those of anchor and partner do.
    seeds = [0, 1, 2**32, 2**62, SEED, SEED + 1, 2**63 - 1, 2**63]
    different = {augment(image, seed).numpy().tobytes() for seed in seeds}
    assert len(different) >= (len(seeds) if "crop_padding" not in settings else 4)


@pytest.mark.parametrize("auto_augment", [None, "rand-m6-mstd0.5-inc1"])
@pytest.mark.parametrize("is_training", [True, False])
def test_the_global_generators_are_restored(is_training, auto_augment):
    augment = transform(
        is_training, input_size=(3, 16, 16), auto_augment=auto_augment, color_jitter=None if auto_augment else 0.4
    )
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(3).tolist()
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    augment(encoded(SMALL), SEED)
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == expected


def test_the_global_generators_are_restored_after_an_error(monkeypatch):
    augment = transform(True, input_size=(3, 16, 16), color_jitter=0.4)
    monkeypatch.setattr(
        augment, "_timm", lambda _: (augment.settings, lambda _: len(random.random()))
    )  # fails after drawing
    random.seed(1), torch.manual_seed(3)
    expected = random.random(), torch.rand(1).item()
    random.seed(1), torch.manual_seed(3)
    with pytest.raises(TypeError):
        augment(encoded(SMALL), SEED)
    assert (random.random(), torch.rand(1).item()) == expected


# Colour


def test_there_is_no_colour_jitter_by_default():
    """timm's own default is 0.4."""
    flat = np.full((40, 40, 3), (200, 100, 50), dtype=np.uint8)
    for augment in (transform(True, input_size=(3, 16, 16)), train_at_32(hflip=0.5)):
        colours = {tuple(augment(encoded(flat), seed)[:, 8, 8].tolist()) for seed in range(30)}
        assert colours == {(200, 100, 50)}


@pytest.mark.parametrize("crop_padding", [None, 4])
@pytest.mark.parametrize("setting", [{"color_jitter": 0.4}, {"auto_augment": "rand-m9-n2"}])
def test_colour_augmentation_is_a_function_of_the_seed(setting, crop_padding):
    array = np.full((32, 32, 3), (200, 100, 50), dtype=np.uint8)
    array[::2] = (90, 160, 30)
    augment = transform(True, input_size=(3, 32, 32), crop_padding=crop_padding, **setting)
    plain = transform(True, input_size=(3, 32, 32), crop_padding=crop_padding)
    image = encoded(array)
    pictures = [augment(image, seed) for seed in range(20)]
    unchanged = sum(torch.equal(picture, plain(image, seed)) for seed, picture in enumerate(pictures))
    assert unchanged < 10
    assert len({picture.numpy().tobytes() for picture in pictures}) > 10
    assert all(torch.equal(augment(image, seed), picture) for seed, picture in enumerate(pictures))


def test_3_augment_solarizes_turns_grey_or_blurs_a_third_of_the_images_each():
    flat = encoded(np.full((40, 40, 3), (200, 100, 50), dtype=np.uint8))
    augment = transform(True, input_size=(3, 16, 16), auto_augment="3a")
    colours = [tuple(augment(flat, seed)[:, 8, 8].tolist()) for seed in range(90)]
    grey = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    expected = {(255 - 200, 100, 50), (grey, grey, grey), (200, 100, 50)}
    assert set(colours) == expected
    assert all(15 < colours.count(colour) < 45 for colour in expected)  # 30 ± 4.5
    jittered = transform(True, input_size=(3, 16, 16), auto_augment="3a", color_jitter=0.3)
    assert len({tuple(jittered(flat, seed)[:, 8, 8].tolist()) for seed in range(20)}) > 10


@pytest.mark.parametrize("policy", ["rand-m10-n1-p1-inc1", "augmix-m10-w1-d1"])
def test_the_largest_magnitude_posterizes_to_black_on_every_pillow(policy):
    augment = transform(True, input_size=(3, 8, 8), auto_augment=policy)
    flat = encoded(np.full((16, 16, 3), (200, 100, 50), dtype=np.uint8))
    views = [augment(flat, seed) for seed in range(150)]  # Pillow 13 rejects timm's 0 bits
    assert any(not view.any() for view in views) or policy.startswith("augmix")  # which mixes black with the original


@pytest.mark.parametrize("mean", [(51 / 255, 102 / 255, 204 / 255), (51 / 255,)])
def test_rotated_and_shifted_images_have_borders_of_the_mean_colour(mean):
    augment = transform(True, input_size=(len(mean), 16, 16), mean=mean, auto_augment="rand-m9-n1-p1")
    colour = [51, 102, 204] if len(mean) == 3 else [51, 51, 51]
    flat, white = (encoded(np.full((16, 16, 3), value, dtype=np.uint8)) for value in (colour, 255))
    assert all((augment(flat, seed).flatten(1).diff() == 0).all() for seed in range(40))
    assert colour[: len(mean)] in [augment(white, seed)[:, 0, 0].tolist() for seed in range(40)]


def test_stronger_colour_jitter_spreads_colours_wider():
    image = encoded(np.full((8, 8, 3), 128, dtype=np.uint8))

    def spread(color_jitter: float) -> float:
        augment = transform(True, input_size=(3, 8, 8), color_jitter=color_jitter)
        return float(np.std([augment(image, seed).float().mean().item() for seed in range(60)]))

    assert spread(0.0) == 0
    assert 0 < 2 * spread(0.1) < spread(0.4)
