"""Out-of-distribution detection: does a network's score tell images of no known class from test images?

Pure functions of CPU tensors. As in D. Hendrycks, K. Gimpel, "A baseline for detecting misclassified and
out-of-distribution examples in neural networks", ICLR 2017, https://arxiv.org/abs/1610.02136, and W. Liu et al.,
"Energy-based out-of-distribution detection", NeurIPS 2020, https://arxiv.org/abs/2010.03759. All rates are in percent.
"""

from __future__ import annotations

import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from cskd_hf.evaluation.rows import per_image

SCORES = {
    "max_prob": "largest probability; ranked by log-odds, since probabilities round to 1",
    "max_logit": "largest logit; a temperature leaves its ranking as it is",
    "energy": "log Σ exp(logit), the negative energy at T = 1",
    "entropy": "negative entropy of the probabilities; nats",
}
DETECTION = {
    "auroc": "area under the ROC curve: how often a test image scores above an OOD image, ties count half; percent",
    "fpr95_in": "OOD images accepted by the threshold that accepts 95 % of the test images (Liu et al.); percent",
    "fpr95_out": "test images rejected by the threshold that rejects 95 % of the OOD images (OpenOOD 1.5); percent",
    "aupr_in": "average precision, test images positive; percent",
    "aupr_out": "average precision, OOD images positive; percent",
}


def ood_scores(logits: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """The scores of `SCORES`, (N,) float64 each; larger for images that look like those of the classes.

    Args:
        logits: (N, K).
        temperature: divides the logits. It changes the ranking by all scores but `max_logit`; for `energy` it is, up to
            a factor, the temperature T of Liu et al.

    Raises:
        ValueError: as for `check_predictions`.

    Example:
        >>> import torch
        >>> from cskd_hf import ood_scores
        >>> scores = ood_scores(torch.tensor([[3.0, 0.0], [0.0, 0.0]]))
        >>> {name: [round(value, 2) for value in values.tolist()] for name, values in scores.items()}
        {'max_prob': [0.95, 0.5], 'max_logit': [3.0, 0.0], 'energy': [3.05, 0.69], 'entropy': [-0.19, -0.69]}
    """

    def scores(rows: Tensor, _: Tensor) -> tuple[Tensor, ...]:
        p = rows.softmax(dim=1)
        entropy = torch.special.entr(p).sum(dim=1)
        return p.amax(dim=1), rows.amax(dim=1), rows.logsumexp(dim=1), -entropy

    unused = torch.zeros(len(logits), dtype=torch.int64)
    return dict(zip(SCORES, per_image(scores, logits, unused, temperature), strict=True))


def ood_detection(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """The rates of `DETECTION`; images of equal scores are on the same side of every threshold.

    Args:
        inside: (N,) scores of test images of the known classes.
        outside: (M,) scores of other images; a good score is lower for them.

    Raises:
        ValueError: one of them is empty, or a score is not finite.

    Example:
        >>> import torch
        >>> from cskd_hf import ood_detection
        >>> rates = ood_detection(torch.tensor([0.9, 0.8, 0.6]), torch.tensor([0.6, 0.2]))
        >>> {name: round(rate, 1) for name, rate in rates.items()}
        {'auroc': 91.7, 'fpr95_in': 50.0, 'fpr95_out': 33.3, 'aupr_in': 91.7, 'aupr_out': 83.3}
    """
    if not len(inside) or not len(outside):
        raise ValueError(f"{len(inside)} scores inside and {len(outside)} outside: needs one or more of each")
    score = torch.cat([inside, outside]).double().numpy()
    is_inside = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).numpy()
    rates = {
        "auroc": roc_auc_score(is_inside, score),
        "fpr95_in": _false_positive_rate(is_inside, score),
        "fpr95_out": _false_positive_rate(1 - is_inside, -score),
        "aupr_in": average_precision_score(is_inside, score),
        "aupr_out": average_precision_score(1 - is_inside, -score),
    }
    return {name: 100 * float(rate) for name, rate in rates.items()}


def _false_positive_rate(positive: object, score: object) -> float:
    """At the highest threshold, which is one of the scores, that finds 95 % of the positive images or more."""
    false, true, _ = roc_curve(positive, score, drop_intermediate=False)  # dropping points would move the threshold
    return false[(true >= 0.95).argmax()]
