"""Isotonic calibration: one monotone function of all classes' probabilities, fitted on the hold-out set.

Isotonic regression as a calibration map is Zadrozny and Elkan's (KDD 2002), for two classes. One function per class,
each against the rest, needs many images of each, gives probabilities of 0 and changes the top class. This is the
accuracy-preserving form, IRM: one function for all classes.

Source: J. Zhang, B. Kailkhura, T. Y.-J. Han, "Mix-n-match: ensemble and compositional methods for uncertainty
calibration in deep learning", ICML 2020, https://arxiv.org/abs/2003.07329, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from cskd_hf.evaluation.rows import CHUNK_SIZE, check_predictions


@dataclass(frozen=True)
class IsotonicMap:
    """The map of logits (N, K) to the logarithms of `g(p) + slope · p`, normalised, (N, K) float64.

    g is monotone, so the order of an image's classes stays: it is interpolated between the M points (probability,
    frequency), and constant beyond them. The slope separates classes where g is constant or 0.
    """

    probability: np.ndarray
    frequency: np.ndarray
    slope: float

    def __call__(self, logits: Tensor) -> Tensor:
        mapped = torch.empty(logits.shape, dtype=torch.float64)
        size = max(1, CHUNK_SIZE // logits.shape[1])
        for rows, out in zip(logits.split(size), mapped.split(size), strict=True):
            p = rows.double().softmax(dim=1)
            frequency = torch.from_numpy(np.interp(p.numpy(), self.probability, self.frequency))
            raised = frequency.add_(p, alpha=self.slope)
            out.copy_((raised / raised.sum(dim=1, keepdim=True)).log_())
        return mapped


def fit_isotonic(logits: Tensor, target: Tensor) -> IsotonicMap:
    """The monotone function of probability that is closest, in squares, to how often the class is the target.

    Every class of every image is one point, by scikit-learn's `IsotonicRegression`. The authors add 1e-9 · p, so that
    one target where g is 0 costs up to 20 nats; here it is p / N [ours]. Memory: about 100 bytes for each of the N · K
    points.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.

    Raises:
        ValueError: as for `check_predictions`.

    Example:
        >>> import torch
        >>> from cskd_hf import fit_isotonic
        >>> logits, target = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])  # 98 % confident, 75 % accurate
        >>> fit_isotonic(logits, target)(logits)[0].exp().round(decimals=2)  # 0.75 + 0.98 / 4, normalised
        tensor([0.8000, 0.2000], dtype=torch.float64)
    """
    check_predictions(logits, target)
    p = logits.double().softmax(dim=1)
    hit = torch.zeros_like(p).scatter_(1, target[:, None], 1.0)
    regression = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
        p.flatten().numpy(), hit.flatten().numpy()
    )
    return IsotonicMap(regression.X_thresholds_, regression.y_thresholds_, 1 / len(target))
