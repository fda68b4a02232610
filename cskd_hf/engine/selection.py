"""Which epoch's weights a run ends with, and whether it stops early: decided on the hold-out set."""

from __future__ import annotations

from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from cskd_hf.recipe.sections import RunSection
from cskd_hf.runs.progress import Progress


class Selection:
    """The best evaluation on the hold-out set so far. Of equal ones the first is the best.

    Its place and value are in `progress` and its weights in every checkpoint, so that a resumed run selects the same.

    Args:
        settings: `selection`, `selection_metric` and `early_stopping_patience`.
        progress: of the run; `observe` changes it.
        weights: of the best epoch, from the checkpoint that the run resumes from.

    Attributes:
        weights: of the evaluated model, in host memory; empty if the last epoch is the result. Every rank has them.
    """

    def __init__(self, settings: RunSection, progress: Progress, weights: dict[str, Tensor]) -> None:
        self.settings, self.progress = settings, progress
        self.best = settings.selection == "best_holdout"
        self.weights = weights if self.best else {}
        if progress.best_metric != settings.selection_metric or (
            self.best and progress.best_epoch and not weights
        ):  # by a forced resume
            progress.forget_best()
            progress.best_metric, self.weights = settings.selection_metric, {}

    def observe(self, value: float | None, model: nn.Module) -> None:
        """Compare an evaluation with the best; a collective, since the ranks' sums may differ in the last bit.

        Args:
            value: of the metric on the hold-out set; None if a logit is not finite.
            model: as evaluated.
        """
        progress = self.progress
        value = broadcast_object_list([value])[0]
        if value is None or (progress.best_value is not None and value >= progress.best_value):
            progress.evaluations_since_best += 1
            return
        progress.best_value, progress.best_epoch, progress.evaluations_since_best = value, progress.epoch, 0
        if self.best:
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    @property
    def stops(self) -> bool:
        """Whether `run.early_stopping_patience` is used up."""
        patience = self.settings.early_stopping_patience
        return patience is not None and self.progress.evaluations_since_best >= patience

    def restore(self, model: nn.Module) -> None:
        """Load the best epoch's weights, if the run selects one. No checkpoint may be saved after it."""
        if self.weights:
            model.load_state_dict(self.weights)
