"""CS-KD's loss against the paper's formulas in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_pairs import NUM_CLASSES, pairs
from torch import Tensor, nn

from cskd_hf.methods import CSKD
from cskd_hf.methods.cskd import class_wise_kd_loss

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# the paper's formulas


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def cls_loss(logits: np.ndarray, partner_logits: np.ndarray, temperature: float) -> float:
    """L_cls: KL(P(· given x′) ‖ P(· given x)), the sum over classes of p′·log(p′ / p), averaged over the batch."""
    p_partner, p = softmax(partner_logits / temperature), softmax(logits / temperature)
    return float((p_partner * np.log(p_partner / p)).sum() / len(logits))


def cross_entropy(logits: np.ndarray, target: np.ndarray) -> float:
    return float(-np.log(softmax(logits)[np.arange(len(target)), target]).mean())


class Fixed(nn.Module):
    """Answers with given logits, one after the other."""

    def __init__(self, *logits: Tensor) -> None:
        super().__init__()
        self.logits = iter(logits)

    def forward(self, images: Tensor) -> Tensor:
        logits = next(self.logits)
        assert len(images) == len(logits)
        return logits


def step(
    logits: Tensor, partner_logits: Tensor, target: Tensor, temperature: float, weight: float
) -> dict[str, Tensor]:
    method = CSKD(temperature=temperature, distill_loss_weight=weight)
    return method.forward_loss(Fixed(logits, partner_logits), pairs(len(target), target=target))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_loss_is_the_papers_formula(temperature: float, weight: float, dtype: torch.dtype) -> None:
    logits, partner_logits = (3 * torch.randn(2, 6, NUM_CLASSES)).to(dtype)
    target = torch.tensor([0, 4, 2, 2, 1, 3])
    result = step(logits, partner_logits, target, temperature, weight)
    z, z_partner = logits.double().numpy(), partner_logits.double().numpy()
    task_loss = cross_entropy(z, target.numpy())
    kd_loss = temperature**2 * cls_loss(z, z_partner, temperature)
    assert kd_loss > 0.5  # else nothing would be compared
    assert result["task_loss"].item() == pytest.approx(task_loss, rel=1e-5)
    assert result["kd_loss"].item() == pytest.approx(kd_loss, rel=1e-5)
    assert result["loss"].item() == pytest.approx(task_loss + weight * kd_loss, rel=1e-5)
    assert all(result[name].dtype == torch.float32 for name in ("loss", "task_loss", "kd_loss"))
    assert result["output"] is logits
    assert torch.equal(result["target"], target)


def test_the_partners_distribution_is_the_first_argument_of_the_divergence() -> None:
    # The partner is sure of one class, the anchor of none: KL(sure ‖ even) is log 2, KL(even ‖ sure) is far more.
    even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[20.0, 0.0]])
    assert class_wise_kd_loss(even, sure, 1.0).item() == pytest.approx(np.log(2), rel=1e-6)
    assert class_wise_kd_loss(sure, even, 1.0).item() == pytest.approx(10 - np.log(2), rel=1e-6)
    assert step(even, sure, torch.tensor([0]), 1.0, 1.0)["kd_loss"].item() == pytest.approx(np.log(2), rel=1e-6)


def test_equal_predictions_cost_nothing_whatever_is_added_to_the_logits() -> None:
    logits = torch.randn(4, NUM_CLASSES)
    assert class_wise_kd_loss(logits, logits, 4.0).item() == pytest.approx(0, abs=1e-6)
    assert class_wise_kd_loss(logits, logits + 7, 4.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("copies", [2, 8])
def test_the_divergence_is_averaged_over_the_batch_and_summed_over_the_classes(copies: int) -> None:
    logits, partner_logits = torch.randn(2, 1, NUM_CLASSES)
    one = class_wise_kd_loss(logits, partner_logits, 2.0).item()
    many = class_wise_kd_loss(logits.repeat(copies, 1), partner_logits.repeat(copies, 1), 2.0).item()
    assert many == pytest.approx(one, rel=1e-5)
    # Each class split into equal parts leaves Σ p′ log(p′ / p) as it is; a mean over classes would shrink.
    split = class_wise_kd_loss(logits.repeat(1, copies), partner_logits.repeat(1, copies), 2.0).item()
    assert split == pytest.approx(one, rel=1e-5)


def test_scaling_logits_with_the_temperature_scales_the_loss_with_its_square() -> None:
    logits, partner_logits = torch.randn(2, 4, NUM_CLASSES)
    one = class_wise_kd_loss(logits, partner_logits, 1.0).item()
    assert class_wise_kd_loss(4 * logits, 4 * partner_logits, 4.0).item() == pytest.approx(16 * one, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_t_times_the_difference_of_probabilities_over_b(temperature: float) -> None:
    logits, partner_logits = 3 * torch.randn(2, 6, NUM_CLASSES)
    logits.requires_grad_()
    partner_logits.requires_grad_()
    class_wise_kd_loss(logits, partner_logits, temperature).backward()
    z, z_partner = logits.detach().double().numpy(), partner_logits.detach().double().numpy()
    expected = temperature * (softmax(z / temperature) - softmax(z_partner / temperature)) / 6
    assert logits.grad is not None
    np.testing.assert_allclose(logits.grad.numpy(), expected, rtol=0, atol=1e-6)
    assert partner_logits.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_extreme_logits_stay_finite(temperature: float, dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, 0, 0, 0], [-1e4, 1e4, 1e4, 0, 0]], dtype=dtype, requires_grad=True)
    partner_logits = torch.tensor([[-1e4, 1e4, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4, 1e4]], dtype=dtype)
    result = step(logits, partner_logits, torch.tensor([1, 4]), temperature, 1.0)
    result["loss"].backward()
    # p′ is one-hot: the divergence is the cross-entropy with it, (2e4 + 1e4) / 2 over T, times T².
    assert result["kd_loss"].item() == pytest.approx(1.5e4 * temperature, rel=0.01)
    assert result["loss"].isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"temperature": float("inf")}, {"distill_loss_weight": -1.0}, {"T": 4.0}]
)
def test_coefficients_without_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        CSKD(**settings)  # type: ignore[arg-type]
