"""Cross-entropy and label smoothing against NumPy and against timm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from timm.loss import LabelSmoothingCrossEntropy
from torch import Tensor, nn

from cskd_hf.methods import Batch, CrossEntropy

LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.25], [0.0, 3.0, -2.5, 1.0], [-0.75, 0.5, 0.125, 4.0]])
TARGET = torch.tensor([0, 3, 2])


def smoothed_cross_entropy(logits: np.ndarray, target: np.ndarray, smoothing: float) -> float:
    """−Σ q log p with q = (1 − ε)·one-hot + ε/K, in float64, averaged over the batch."""
    num, num_classes = logits.shape
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    q = np.full((num, num_classes), smoothing / num_classes)
    q[np.arange(num), target] += 1 - smoothing
    return float(-(q * log_p).sum() / num)


class Fixed(nn.Module):
    """Answers with given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        assert len(images) == len(self.logits)
        return self.logits


def step(logits: Tensor, smoothing: float) -> dict[str, Tensor]:
    batch = Batch(torch.zeros(len(logits), 3, 2, 2), TARGET, torch.arange(len(logits)))
    return CrossEntropy(smoothing=smoothing).forward_loss(Fixed(logits), batch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_the_loss_is_the_formula(smoothing: float, dtype: torch.dtype) -> None:
    logits = (LOGITS * 1.37).to(dtype)
    result = step(logits, smoothing)
    expected = smoothed_cross_entropy(logits.double().numpy(), TARGET.numpy(), smoothing)
    assert result["loss"].dtype == torch.float32
    assert result["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(result["task_loss"], result["loss"])
    assert torch.equal(result["target"], TARGET)
    assert result["output"] is logits


def test_without_smoothing_it_is_the_log_probability_of_the_target() -> None:
    expected = -LOGITS.softmax(dim=-1)[torch.arange(3), TARGET].log().mean()
    assert step(LOGITS, 0.0)["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.1, 0.6])
def test_smoothing_is_timms(smoothing: float) -> None:
    logits, timms_logits = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
    loss = step(logits, smoothing)["loss"]
    timms = LabelSmoothingCrossEntropy(smoothing)(timms_logits, TARGET)
    assert loss.item() == pytest.approx(timms.item(), rel=1e-6)
    loss.backward()
    timms.backward()
    torch.testing.assert_close(logits.grad, timms_logits.grad, rtol=0, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_gradient_is_the_probabilities_minus_the_target(smoothing: float) -> None:
    logits = LOGITS.clone().requires_grad_()
    step(logits, smoothing)["loss"].backward()
    target = nn.functional.one_hot(TARGET, 4) * (1 - smoothing) + smoothing / 4
    torch.testing.assert_close(logits.grad, (LOGITS.softmax(dim=-1) - target) / 3, rtol=0, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_logits_stay_finite(dtype: torch.dtype, smoothing: float) -> None:
    logits = torch.tensor([[1e4, -1e4, 0, 0], [1e4, 0, 1e4, -1e4], [-1e4, -1e4, 1e4, -1e4]], dtype=dtype)
    result = step(logits.requires_grad_(), smoothing)
    result["loss"].backward()
    assert result["loss"].isfinite()
    assert result["loss"] > 6000  # the second image's 2e4, a third of it
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_is_a_share_below_one(smoothing: float) -> None:
    with pytest.raises(ValueError, match="smoothing"):
        CrossEntropy(smoothing=smoothing)
