"""Temperature scaling: divide all logits by one number, fitted on the hold-out set.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
https://arxiv.org/abs/1706.04599.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cskd_hf.evaluation.confidence import check_predictions

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-2, 1e2


def fit_temperature(logits: Tensor, target: Tensor) -> float:
    """The temperature in [1e-2, 1e2] that minimises the mean NLL of softmax(logits / temperature).

    The NLL is convex in β = 1 / temperature, so its slope changes sign at most once; bisection finds the place, to a
    relative 1e-9. A minimum outside the range returns its bound: 1e-2 if all images are classified correctly, 1e2 if
    the logits are worse than a constant. If all logits of each row are equal, the temperature is 1.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.

    Raises:
        ValueError: as for `check_predictions`, or a logit is not finite.

    Example:
        >>> import torch
        >>> from cskd_hf import fit_temperature
        >>> logits, target = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # 98 % confident, 75 % accurate
        >>> round(fit_temperature(logits, target), 2)  # 4 / ln 3
        3.64
    """
    check_predictions(logits, target)
    if not logits.isfinite().all():
        row = int((~logits.isfinite().all(dim=1)).nonzero()[0])
        raise ValueError(f"logits[{row}] is not finite; fitting a temperature needs finite logits")
    margin = logits.double()
    margin = margin - margin.gather(1, target[:, None])  # NLL = mean log Σ exp(β · margin)
    if not margin.any():
        return 1.0

    def slope(temperature: float) -> float:
        """dNLL/dβ: the mean over images of the expected margin."""
        return ((margin / temperature).softmax(dim=1) * margin).sum(dim=1).mean().item()

    if slope(MIN_TEMPERATURE) <= 0:
        return MIN_TEMPERATURE
    if slope(MAX_TEMPERATURE) >= 0:
        return MAX_TEMPERATURE
    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    for _ in range(36):  # halvings: 9.2 / 2³⁶ is 1.3e-10
        middle = (low + high) / 2
        if slope(math.exp(middle)) > 0:  # the NLL grows with β: the temperature is too low
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature, (N, K) float64: in float32 two logits could become equal and argmax change.

    Example:
        >>> import torch
        >>> from cskd_hf import apply_temperature
        >>> apply_temperature(torch.tensor([[4.0, 0.0]]), temperature=2.0)
        tensor([[2., 0.]], dtype=torch.float64)
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; needs a finite number above 0")
    return logits.to(torch.float64) / temperature
