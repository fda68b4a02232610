"""Maps of the logits to calibrated ones, fitted on the hold-out set, and which of them that set supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from cskd_hf.evaluation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    apply_temperature,
    calibrate,
    count_different,
    fit_temperature,
    group_copies,
)
from cskd_hf.evaluation.inputs import MAPS
from cskd_hf.evaluation.isotonic import fit_isotonic
from cskd_hf.evaluation.scores import proper_scores
from cskd_hf.evaluation.vector_scaling import VectorScaling, fit_vector_scaling

Map = Callable[[Tensor], Tensor]
FOLDS = 5  # [ours]


class FittedMap(NamedTuple):
    """A map of logits (N, K) to calibrated ones, (N, K) float64.

    Attributes:
        apply: the map.
        supported: whether the hold-out set supports it.
        verdict: "supported: …" or "not supported: …".
    """

    name: str
    apply: Map
    supported: bool
    verdict: str


def _temperature(logits: Tensor, target: Tensor) -> Map:
    return partial(apply_temperature, temperature=fit_temperature(logits, target))


FITS: dict[str, Callable[[Tensor, Tensor], Map]] = {
    "temperature": _temperature,
    "vector": fit_vector_scaling,
    "isotonic": fit_isotonic,
}


def compare_maps(logits: Tensor, target: Tensor, names: Sequence[str] = MAPS) -> list[FittedMap]:
    """Fit maps of the logits, and decide which of them the hold-out set supports.

    A map is not supported where the temperature is not (`calibrate`). Vector scaling also needs an image of each class,
    and no weight at its bound. Vector scaling and isotonic calibration must have a lower NLL than temperature scaling
    in a five-fold cross-validation on these images, by more than one standard error; copies of an image are in one fold
    and count once. Where a single fold has all the mistakes, the others determine no temperature to compare with.

    The rule of one standard error, which prefers the simpler model, is Breiman et al.'s, "Classification and regression
    trees", 1984.

    Args:
        logits: (N, K), of images the model was not trained on.
        target: (N,) int64.
        names: of "temperature", "vector" and "isotonic".

    Raises:
        ValueError: as for `calibrate`.

    Example:
        >>> import torch
        >>> from cskd_hf import compare_maps
        >>> logits, target = torch.tensor([[4.0, 0.0], [0.0, 4.0]] * 9), torch.tensor([0, 1] * 9)
        >>> [fitted.verdict for fitted in compare_maps(logits, target, ["vector"])]
        ['not supported: 2 different hold-out images, fewer than the 200 that a temperature needs']
    """
    kind, _, temperature_evidence = calibrate(logits, target).verdict.partition(": ")
    common = None if kind == "calibrated" else temperature_evidence.removesuffix("; T = 1")
    fold = _folds(logits, target)
    validated = partial(_validated_nll, logits=logits, target=target, fold=fold)
    larger, reference = common, None
    if common is None and set(names) != {"temperature"}:
        larger, reference = _objection_to_folds(logits, target, fold), validated(_temperature)
    fitted = []
    for name in names:
        apply, evidence = FITS[name](logits, target), temperature_evidence
        objection = common if name == "temperature" else larger
        if objection is None and isinstance(apply, VectorScaling):
            objection = _objection_to_vector(apply, target)
        if objection is None and name != "temperature":
            assert reference is not None
            difference = validated(FITS[name]) - reference
            error = difference.std(correction=0).item() / count_different(logits, target) ** 0.5
            evidence = f"cross-validated hold-out NLL {difference.mean():+.4f} ± {error:.4f} to temperature scaling"
            objection = None if difference.mean() < -error else f"{evidence}, not lower by one standard error"
        verdict = f"supported: {evidence}" if objection is None else f"not supported: {objection}"
        fitted.append(FittedMap(name, apply, objection is None, verdict))
    return fitted


def _folds(logits: Tensor, target: Tensor) -> Tensor:
    """The fold of each image, (N,); copies of an image are in one."""
    groups = group_copies(logits, target)
    shuffled = torch.randperm(int(groups.max()) + 1, generator=torch.Generator().manual_seed(0))
    return (shuffled % FOLDS)[groups]


def _objection_to_folds(logits: Tensor, target: Tensor, fold: Tensor) -> str | None:
    for number in fold.unique():
        rest = fold != number
        if not MIN_TEMPERATURE < fit_temperature(logits[rest], target[rest]) < MAX_TEMPERATURE:
            return f"{rest.sum():,} of the {len(rest):,} hold-out images determine no temperature to compare with"
    return None


def _objection_to_vector(scaling: VectorScaling, target: Tensor) -> str | None:
    num_classes, shown, at_bound = len(scaling.weight), len(target.unique()), len(scaling.at_bound)
    if shown < num_classes:
        return f"the hold-out images show {shown} of {num_classes} classes, and vector scaling needs all"
    if at_bound:
        return f"the weights of {at_bound} of {num_classes} classes are at their lower bound"
    return None


def _validated_nll(fit: Callable[[Tensor, Tensor], Map], logits: Tensor, target: Tensor, fold: Tensor) -> Tensor:
    """The NLL of each image, (N,) float64, under the map fitted on the other folds."""
    nll = torch.empty(len(target), dtype=torch.float64)
    for number in fold.unique():
        out = fold == number
        nll[out] = proper_scores(fit(logits[~out], target[~out])(logits[out]), target[out]).nll
    return nll
