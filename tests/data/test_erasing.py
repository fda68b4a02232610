"""Random erasing: timm's, with the same seed, within uint8's rounding."""

from __future__ import annotations

import random

import pytest
import torch
from timm.data.random_erasing import RandomErasing
from transform_cases import NOISE, SEED, encoded, transform

from cskd_hf.data.erasing import Erasing
from cskd_hf.recipe.sections import TransformSection
from cskd_hf.seeding import seeded

MEAN, STD = (0.2, 0.5, 0.7), (0.1, 0.2, 0.3)
SETTINGS = {"input_size": (3, 24, 40), "mean": MEAN, "std": STD, "re_prob": 1.0}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_an_erased_image_is_timms_within_the_rounding_of_uint8(mode: str, count: int) -> None:
    image, (mean, std) = torch.from_numpy(NOISE[:24, :40].copy()), (torch.tensor(MEAN), torch.tensor(STD))
    for seed in range(10):
        erase = Erasing(TransformSection.model_validate({**SETTINGS, "re_mode": mode, "re_count": count}))
        ours, normalised = image.clone(), ((image / 255 - mean) / std).permute(2, 0, 1).contiguous()
        with seeded(seed):
            erase(ours)
        with seeded(seed):
            timms = RandomErasing(1.0, mode=mode, max_count=count, device="cpu")(normalised.clone())
        expected = ((timms.permute(1, 2, 0) * std + mean) * 255).clamp(0, 255)
        torch.testing.assert_close(ours.float(), expected, rtol=0, atol=0.5 + 1e-3)
        erased = (timms != normalised).any(dim=0)
        assert erased.any()
        assert torch.equal(ours[~erased], image[~erased])


@pytest.mark.parametrize("other", [{}, {"color_jitter": 0.4}], ids=["own crop", "timm's transform"])
def test_erasing_leaves_the_crop_and_is_a_function_of_the_seed(other: dict[str, float]) -> None:
    image = encoded(NOISE)
    plain = transform(True, **SETTINGS | other | {"re_prob": 0.0})
    erase, half = (transform(True, **SETTINGS | other | {"re_prob": chance}) for chance in (1.0, 0.5))
    mean = torch.tensor([round(255 * value) for value in MEAN])[:, None, None]
    states = random.getstate(), torch.get_rng_state()
    erased, flipped = [], []
    for seed in range(SEED, SEED + 60):
        before, after, either = (pixels(image, seed) for pixels in (plain, erase, half))
        changed = (before != after).any(dim=0)
        assert 0.01 < changed.float().mean() < 0.4  # timm: 2 to 33 % of the area
        assert torch.equal(after, torch.where(changed, mean, before))
        erased.append(not torch.equal(either, before))
        assert torch.equal(either, after if erased[-1] else before)
        flipped.append(random.Random(seed).random() < 0.5)  # the first draw of our own crop
    assert 15 < sum(erased) < 45
    assert 15 < sum(a == b for a, b in zip(erased, flipped, strict=True)) < 45
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
