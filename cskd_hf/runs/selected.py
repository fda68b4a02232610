"""Which epoch's weights a run's results are of, when the hold-out set decides."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from cskd_hf.recipe.sections import SELECTION_METRICS


class Selected(BaseModel):
    """How the hold-out set decided.

    Attributes:
        epoch: whose weights are the result, counted from 1.
        epochs_trained: fewer than the recipe's if training stopped early.
        metric: `run.selection_metric`.
        best_epoch: with the least value on the hold-out set; None if no epoch's logits were finite.
        best_value: of the metric, at that epoch.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    epoch: int
    epochs_trained: int
    metric: Literal["top1_error", "nll", "refinement_loss"]
    best_epoch: int | None
    best_value: float | None

    def updates(self, trained: int) -> int:
        """The updates that the exported weights had, of all `trained` ones."""
        return round(trained * self.epoch / self.epochs_trained)

    def note(self, selection: str, epochs: int) -> str:
        """The sentence that every page prints.

        Args:
            selection: `run.selection`.
            epochs: of the recipe.
        """
        metric = f"hold-out {SELECTION_METRICS[self.metric]}"
        if selection == "best_holdout" and self.best_epoch is not None:
            text = f"weights of epoch {self.epoch} of {epochs}, chosen by {metric}"
            text += "; hold-out metrics of the chosen epoch are optimistic"
        else:
            text = f"weights of epoch {self.epoch} of {epochs}, the last one trained"
            if selection == "best_holdout":
                text += ": in no epoch were all hold-out logits finite"
        if self.epochs_trained < epochs:
            text += f"; training stopped early after epoch {self.epochs_trained}, by {metric}"
        return text
