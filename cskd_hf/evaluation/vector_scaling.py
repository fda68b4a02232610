"""Vector scaling: a weight and a bias for the logit of each class, fitted on the hold-out set.

Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks", ICML 2017,
https://arxiv.org/abs/1706.04599, section 4.2. The ridge towards temperature scaling is [ours].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from cskd_hf.evaluation.calibration import fit_temperature
from cskd_hf.evaluation.rows import row_chunks

RIDGE = 10.0  # [ours] a normal prior of deviation 0.32 on T · weight - 1 and on the bias in nats
# [ours] Of T · weight: a class's logit would not matter at 0, and count against the class below.
MIN_WEIGHT = 0.01


@dataclass(frozen=True)
class VectorScaling:
    """The map of logits (N, K) to `logits * weight + bias`, (N, K) float64.

    Attributes:
        weight, bias: (K,) float64.
        temperature: of the same images; weight 1 / temperature and bias 0 would be temperature scaling.
    """

    weight: Tensor
    bias: Tensor
    temperature: float

    def __call__(self, logits: Tensor) -> Tensor:
        return logits.double().mul_(self.weight).add_(self.bias)

    @property
    def at_bound(self) -> list[int]:
        """The classes whose weight is at its lower bound."""
        return (self.weight * self.temperature <= MIN_WEIGHT * (1 + 1e-6)).nonzero()[:, 0].tolist()


def fit_vector_scaling(logits: Tensor, target: Tensor, ridge: float = RIDGE) -> VectorScaling:
    """The weight and bias of each class that minimise the NLL plus a ridge.

    With T the temperature of `fit_temperature` and weight = (1 + u) / T, the loss is
    `Σ_i NLL_i + ridge / 2 · (‖u‖² + ‖bias‖²)`, which is convex; on few images the weights stay near 1 / T and the
    biases near 0. u is at least -0.99. Minimised by scipy's L-BFGS-B.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.
        ridge: its strength; 0 is Guo et al.'s vector scaling.

    Raises:
        ValueError: as for `fit_temperature`, or the ridge is negative or not finite.

    Example:
        >>> import torch
        >>> from cskd_hf import fit_vector_scaling, nll
        >>> logits, target = torch.tensor([[2.0, 0.0], [0.0, 2.0]] * 50), torch.tensor([0, 0, 0, 1] * 25)
        >>> scaling = fit_vector_scaling(logits, target)  # class 0 is more frequent than the model says
        >>> (scaling.bias[0] > scaling.bias[1]).item(), nll(scaling(logits), target) < nll(logits, target)
        (True, True)
    """
    if not 0 <= ridge < math.inf:
        raise ValueError(f"ridge is {ridge}; needs a finite number from 0")
    temperature, num_classes = fit_temperature(logits, target), logits.shape[1]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        relative, bias = torch.from_numpy(parameters).view(2, num_classes)
        value, gradient = 0.0, torch.zeros(2, num_classes, dtype=torch.float64)
        for rows, labels in row_chunks(logits, target, temperature):
            log_p = (rows * (1 + relative) + bias).log_softmax(dim=1)
            own = labels[:, None]
            value -= log_p.gather(1, own).sum().item()
            residual = log_p.exp_().scatter_add_(1, own, -torch.ones_like(own, dtype=torch.float64))
            gradient += torch.stack([(residual * rows).sum(dim=0), residual.sum(dim=0)])
        return value + ridge / 2 * float(parameters @ parameters), gradient.flatten().numpy() + ridge * parameters

    bounds = [(MIN_WEIGHT - 1, None)] * num_classes + [(None, None)] * num_classes
    found = minimize(loss, np.zeros(2 * num_classes), jac=True, method="L-BFGS-B", bounds=bounds)
    relative, bias = torch.from_numpy(found.x).view(2, num_classes)
    return VectorScaling((1 + relative) / temperature, bias, temperature)
