"""Refinement loss: the criterion for choosing an epoch whose logits are then divided by a fitted temperature.

Source: E. Berta, D. Holzmüller, M. I. Jordan, F. Bach, "Rethinking early stopping: refine, then calibrate", 2025,
https://arxiv.org/abs/2501.19195.
"""

from __future__ import annotations

from torch import Tensor

from cskd_hf.evaluation.calibration import fit_temperature
from cskd_hf.evaluation.metrics import nll


def refinement_loss(logits: Tensor, target: Tensor) -> float:
    """The mean NLL in nats after dividing the logits by the temperature that minimises it.

    What a temperature cannot repair, and so the better criterion for choosing an epoch that is calibrated afterwards.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.

    Raises:
        ValueError: as for `fit_temperature`.

    Example:
        >>> import torch
        >>> from cskd_hf import refinement_loss
        >>> logits, target = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
        >>> round(refinement_loss(logits, target), 4), round(refinement_loss(9 * logits, target), 4)  # H(3/4)
        (0.5623, 0.5623)
    """
    return nll(logits, target, fit_temperature(logits, target))
