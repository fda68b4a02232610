from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from cskd_hf.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    apply_temperature,
    calibrate,
    fit_temperature,
)
from cskd_hf.evaluation.refinement import refinement_loss


def sampled(temperature: float, num_images: int = 20_000, num_classes: int = 10) -> tuple[Tensor, Tensor]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(num_images, num_classes, generator=generator)
    target = torch.multinomial((logits / temperature).softmax(dim=1), 1, generator=generator).flatten()
    return logits, target


def numpy_nll(logits: Tensor, target: Tensor, temperature: float) -> float:
    z = logits.numpy().astype(np.float64) / temperature
    top = z.max(axis=1)
    log_normaliser = top + np.log(np.exp(z - top[:, None]).sum(axis=1))
    return float(np.mean(log_normaliser - z[np.arange(len(z)), target.numpy()]))


@pytest.mark.parametrize("true_temperature", [0.3, 2.5])
def test_the_gradient_of_the_nll_is_zero_at_the_optimum(true_temperature: float) -> None:
    logits, target = sampled(true_temperature, num_images=500)
    beta = torch.tensor(1 / fit_temperature(logits, target), dtype=torch.float64, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(logits.double() * beta, target)
    (slope,) = torch.autograd.grad(loss, beta)
    assert abs(slope.item()) < 1e-8


@pytest.mark.parametrize("scale", [0.2, 1.0, 7.0])
def test_the_refinement_loss_is_the_least_nll_over_temperatures(scale: float) -> None:
    logits, target = sampled(2.5, num_images=300)
    least = min(numpy_nll(logits, target, temperature) for temperature in np.geomspace(0.2, 20, 2_000))
    assert refinement_loss(scale * logits, target) == pytest.approx(least, abs=1e-5)


def test_two_classes_have_the_closed_form() -> None:
    # correct 3 times in 4 at one margin: calibrated means softmax = 3/4, so margin / temperature = log 3
    logits = torch.tensor([[5.0, 0.0]] * 4)
    target = torch.tensor([0, 0, 0, 1])
    assert fit_temperature(logits, target) == pytest.approx(5 / math.log(3), rel=1e-9)


def test_a_constant_added_to_a_row_changes_nothing() -> None:
    logits, target = sampled(2.5, num_images=300)
    shifted = logits.double() + 1000 * torch.arange(300)[:, None]
    assert fit_temperature(shifted, target) == pytest.approx(fit_temperature(logits, target), rel=1e-8)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_perfectly_separated_set_returns_the_lower_bound(scale: float) -> None:
    logits = scale * torch.eye(5)
    assert fit_temperature(logits, torch.arange(5)) == MIN_TEMPERATURE == 1e-6


def test_logits_worse_than_a_constant_return_the_upper_bound() -> None:
    assert fit_temperature(-torch.eye(5), torch.arange(5)) == MAX_TEMPERATURE == 1e6


@pytest.mark.parametrize("num_classes", [1, 4])
def test_logits_equal_within_rows_have_temperature_1(num_classes: int) -> None:
    logits = torch.tensor([[0.1], [0.7], [3.3]]).expand(3, num_classes)
    assert fit_temperature(logits, torch.zeros(3, dtype=torch.int64)) == 1.0


def test_huge_logits_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, 0.0]] * 4)
    assert fit_temperature(logits, torch.tensor([0, 0, 0, 1])) == pytest.approx(1e4 / math.log(3))


def test_logits_of_a_diverged_network_support_no_temperature() -> None:
    """Rounding of an NLL of 1e14 and more exceeds the deviance that bounds the interval."""
    logits, target = sampled(2.5, num_images=300)
    found = calibrate(1e20 * logits, target)
    assert found.temperature is None
    assert found.fitted == MAX_TEMPERATURE
    assert found.high is None


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_neither_refinement_nor_the_verdict_depends_on_the_scale_of_the_logits(scale: float) -> None:
    logits, target = sampled(2.5, num_images=300)
    scaled = scale * logits.double()
    assert refinement_loss(scaled, target) == pytest.approx(refinement_loss(logits, target), rel=1e-8)
    assert calibrate(scaled, target).temperature == pytest.approx(scale * fit_temperature(logits, target), rel=1e-8)


@pytest.mark.parametrize("temperature", [0.01, 0.7, 3.0, 100.0])
def test_scaling_changes_no_prediction_even_between_neighbouring_floats(temperature: float) -> None:
    ones = torch.linspace(0.5, 2.0, 1001)
    logits = torch.stack([ones, torch.nextafter(ones, torch.tensor(9.0))], dim=1)
    scaled = apply_temperature(logits, temperature)
    assert (scaled.argmax(dim=1) == 1).all()
    assert scaled.dtype == torch.float64
    np.testing.assert_allclose(scaled.numpy(), logits.numpy().astype(np.float64) / temperature, rtol=1e-15)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_an_invalid_temperature_is_rejected(temperature: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        apply_temperature(torch.zeros(1, 2), temperature)


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"target\[1\] is 3"),
        (torch.tensor([[0.0, 1.0], [0.0, -math.inf]]), torch.tensor([0, 0]), r"logits\[1\] is not finite"),
        (torch.tensor([[0.0, 1.0], [0.0, math.nan]]), torch.tensor([0, 0]), r"logits\[1\] is not finite"),
    ],
)
def test_invalid_predictions_are_rejected(logits: Tensor, target: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(logits, target)
