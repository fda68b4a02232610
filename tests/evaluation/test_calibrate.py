"""Which hold-out sets support a temperature, and how far they determine it."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

from cskd_hf.evaluation.calibration import (
    DEVIANCE,
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    calibrate,
    count_different,
    fit_temperature,
)


def drawn(num_images: int, num_classes: int = 5, temperature: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 6 * torch.randn(num_images, num_classes, generator=generator)
    return logits, torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator).flatten()


def all_right(num_images: int, margin: float = 8.0) -> tuple[Tensor, Tensor]:
    target = torch.arange(num_images) % 4
    logits = torch.randn(num_images, 4, generator=torch.Generator().manual_seed(1))
    return logits + margin * torch.nn.functional.one_hot(target, 4), target


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_enough_images_give_the_likeliest_temperature_with_its_interval(scale: float) -> None:
    logits, target = drawn(600)
    logits *= scale
    result = calibrate(logits, target)
    assert result.temperature == result.fitted == fit_temperature(logits, target)
    numbers = r"the temperature (\S+) \(95 % interval (\S+) to (\S+)\)"
    found = re.fullmatch(f"calibrated: logits divided by {numbers}, fitted on 600 hold-out images", result.verdict)
    assert found is not None
    assert [float(value) for value in found.groups()] == pytest.approx([result.fitted, result.low, result.high], 1e-3)
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.fitted < result.high
    assert pytest.approx(chi2.ppf(0.95, 1), abs=1e-3) == DEVIANCE

    def deviance(temperature: float) -> float:
        z = logits.numpy().astype(np.float64)
        losses = [np.log(np.exp(z / t).sum(axis=1)) - z[range(600), target] / t for t in (temperature, result.fitted)]
        return 2 * float((losses[0] - losses[1]).sum())

    assert [deviance(end) for end in (result.low, result.high)] == pytest.approx([DEVIANCE] * 2, rel=1e-6)


def test_the_interval_holds_the_true_temperature_in_about_95_percent_of_hold_out_sets() -> None:
    results = [calibrate(*drawn(200, seed=seed)) for seed in range(50)]
    assert all(result.temperature is not None for result in results)
    assert 44 <= sum(result.low < 2.0 < result.high for result in results) <= 50


@pytest.mark.parametrize(
    ("predictions", "reason"),
    [
        (all_right(18), "18 hold-out images, fewer than the 200 that a temperature needs"),
        (drawn(199), "199 hold-out images, fewer than the 200"),
        (all_right(2_000), "all 2,000 hold-out images are classified correctly, which bounds the temperature only"),
        ((all_right(400)[0], (all_right(400)[1] + 1) % 4), "no better than chance: the hold-out images bound"),
        (
            (drawn(400)[0], torch.randint(5, (400,), generator=torch.Generator().manual_seed(2))),
            "no better than chance",
        ),
        ((torch.zeros(400, 4) + torch.arange(400)[:, None], torch.arange(400) % 4), "4 different hold-out images"),
        ((drawn(300)[0], torch.zeros(300, dtype=torch.int64)), "the hold-out images show 1 of 5 classes"),
        ((drawn(300, 2)[0], torch.zeros(300, dtype=torch.int64)), "the hold-out images show 1 of 2 classes"),
        (tuple(part.repeat(*[20] + [1] * (part.ndim - 1)) for part in drawn(30)), "30 different hold-out images"),
    ],
    ids=["few", "one too few", "all right", "all wrong", "chance", "constant", "one class", "one of two", "copies"],
)
def test_a_hold_out_set_that_does_not_determine_the_temperature_is_refused(
    predictions: tuple[Tensor, Tensor], reason: str
) -> None:
    result = calibrate(*predictions)
    assert result.temperature is None
    assert result.verdict.startswith("not calibrated: ")
    assert reason in result.verdict
    assert result.verdict.endswith("; T = 1")
    assert MIN_TEMPERATURE <= result.fitted <= MAX_TEMPERATURE
    assert result.nll_scaled <= result.nll + 1e-12


def test_a_single_mistake_leaves_the_temperature_open() -> None:
    logits, target = all_right(400)
    logits[0] = torch.tensor([0.0, 0.5, 0.0, 0.0])  # of class 0
    result = calibrate(logits, target)
    assert result.temperature is None
    assert f"leave the temperature between {result.low:.3g} and {result.high:.3g}" in result.verdict


def test_copies_of_the_hold_out_images_do_not_narrow_the_interval() -> None:
    logits, target = drawn(300)
    once = calibrate(logits, target)
    noise = 1 + 1e-7 * torch.randn(900, 5, generator=torch.Generator().manual_seed(3))  # another batch's rounding
    thrice = calibrate(logits.repeat(3, 1) * noise, target.repeat(3))
    assert thrice.images == 900
    assert 300 <= thrice.different_images <= 305  # some lie between two rounding steps
    for field in ("temperature", "low", "high"):
        assert getattr(thrice, field) == pytest.approx(getattr(once, field), rel=1e-2)


def test_no_two_of_many_images_are_taken_for_copies() -> None:
    assert count_different(*drawn(5_000, 20)) == 5_000


def test_logits_that_are_not_finite_are_an_error() -> None:
    logits, target = drawn(300)
    logits[7, 2] = -torch.inf
    with pytest.raises(ValueError, match=r"logits\[7\] is not finite"):
        calibrate(logits, target)
