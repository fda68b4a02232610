"""Evaluation within a run: the watched split after an epoch, every split at the end."""

from __future__ import annotations

from cskd_hf.engine.run import Run
from cskd_hf.engine.stopping import StopRequest
from cskd_hf.evaluation import confidence, metrics
from cskd_hf.evaluation.predictions import Predictions, predict_split
from cskd_hf.evaluation.refinement import refinement_loss
from cskd_hf.evaluation.rows import finite_rows


def evaluate(run: Run, stop: StopRequest) -> tuple[dict[str, float], Predictions | None]:
    """Error and calibration on the watched split, and its predictions; nothing if a logit is not finite."""
    split, settings = run.watched, run.recipe.run
    predictions = predict(run, split, stop, autocast=True)
    logits, target = predictions.logits, predictions.target
    if not finite_rows(logits).all():  # half precision may overflow where training, with batch statistics, does not
        run.console.say(f"note: epoch {run.progress.epoch}: logits of the {split} split are not finite")
        return {}, None
    values = {
        f"{split}/top1_error": metrics.top_k_error(logits, target, 1),
        f"{split}/nll": metrics.nll(logits, target),
        f"{split}/ece": confidence.ece(logits, target),
    }
    if settings.uses_holdout and settings.selection_metric == "refinement_loss":
        values[f"{split}/refinement_loss"] = refinement_loss(logits, target)
    return values, predictions


def predict(run: Run, split: str, stop: StopRequest, autocast: bool) -> Predictions:
    """Predictions of the exported model on a split, gathered from all ranks; in float32 unless `autocast`.

    Raises:
        EvaluationStoppedError: all ranks agreed to stop.
    """
    return predict_split(
        run.model,
        run.images.splits[split],
        run.accelerator,
        run.recipe.data,
        run.recipe.transform,
        channels_last=run.recipe.run.channels_last,
        autocast=autocast,
        with_features=not autocast,
        stop=stop.agreed,
    )
