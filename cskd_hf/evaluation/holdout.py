"""The hold-out predictions in a run folder, and the rule for prediction sets that follows from them.

Imports torch only where it reads them: that there are none shows at once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from cskd_hf.errors import UserError, one_line
from cskd_hf.runs.summary import read_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from cskd_hf.runs.weights import Weights

_FILE = "predictions.safetensors"


def find_holdout(weights: Weights, option: str) -> Path:
    """The run folder with the hold-out predictions of these weights; `option` needs them.

    Raises:
        UserError: the weights are not a finished run's, or the run had no hold-out set.
    """
    from safetensors import SafetensorError, safe_open

    if weights.run is None or weights.checkpoints:
        raise UserError(
            f"{option}: {weights.source} has no hold-out predictions; name the folder of a finished run, trained with "
            "data.holdout"
        )
    path = weights.run / _FILE
    try:
        with safe_open(path, framework="np") as file:
            names = set(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{option}: {path} cannot be read: {one_line(error)}; restore it, or name another run"
        ) from None
    if not {"holdout_logits", "holdout_target"} <= names:
        raise UserError(f"{option}: {weights.source} was trained without a hold-out set; name a run with data.holdout")
    return weights.run


def read_holdout(run: Path) -> tuple[Tensor, Tensor]:
    """Logits and target of the hold-out set; the test split's, which may be large, are not read."""
    from safetensors import safe_open

    with safe_open(run / _FILE, framework="pt") as file:
        return file.get_tensor("holdout_logits"), file.get_tensor("holdout_target")


def read_valid_holdout(run: Path, option: str, finite: bool) -> tuple[Tensor, Tensor]:
    """The same; raises UserError if a row of logits has no softmax or, with `finite`, is not finite."""
    from cskd_hf.evaluation.rows import finite_rows

    logits, target = read_holdout(run)
    valid = finite_rows(logits) if finite else logits.amax(dim=1).isfinite()
    if not valid.all():
        raise UserError(
            f"{option}: the logits of {int((~valid).sum()):,} of {len(valid):,} hold-out images of {run} are not "
            "finite; leave it out, or name another run"
        )
    return logits, target


def selection_notes(run: Path) -> list[str]:
    """What makes the hold-out predictions of a run too good: that they chose its epoch."""
    settings = read_recipe(run).run
    if not settings.uses_holdout:
        return []
    choice = "chose the epoch" if settings.selection == "best_holdout" else "decided when training stopped"
    return [f"the hold-out images also {choice}: coverage and calibration may be worse on new images"]


def set_rule(weights: Weights, temperature: float, coverage: float) -> tuple[float, str]:
    """The greatest score "lac" of a class in a new image's prediction set, and the rule in words.

    Raises:
        UserError: the weights are not a finished run's with hold-out images, or these are too few for the coverage.
    """
    from cskd_hf.evaluation.conformal import conformal_quantile, fewest_images, target_scores

    run = find_holdout(weights, "--coverage")
    logits, target = read_valid_holdout(run, "--coverage", finite=False)
    if len(target) < fewest_images(coverage):
        raise UserError(
            f"--coverage: read {coverage:g}, which needs {fewest_images(coverage):,} hold-out images; "
            f"{weights.source} has {len(target):,}: write a lower one, or name a run with more"
        )
    threshold = conformal_quantile(target_scores(logits, target, "lac", temperature), coverage)
    rule = (
        f"prediction sets with a coverage of {100 * coverage:g} %: the classes of at least "
        f"{100 * math.exp(-threshold):.4g} %, from {len(target):,} hold-out images"
    )
    return threshold, "\nnote: ".join([rule, *selection_notes(run)])
