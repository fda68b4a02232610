"""The progress of a run, and its throughput."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta


@dataclass
class Progress:
    """All that resuming needs besides the weights and optimizer state.

    Attributes:
        epoch: in training, from 0; equals the number of epochs when training is over.
        position: samples of this epoch already trained on, over all ranks.
        step: updates since the start.
        totals: sums of every logged term over those samples, if the epoch was interrupted.
        seconds: spent training.
        wait_seconds: of these, spent waiting for data.
        samples: supervised images since the start, over all ranks.
        skipped: unreadable training images, row → reason.
        line: the metrics.jsonl line of an epoch that is trained but not yet evaluated.
        best_metric: what the next three are about, `run.selection_metric`.
        best_value: the least on the hold-out set; None before an evaluation with finite logits.
        best_epoch: epochs trained by then; 0 before one.
        evaluations_since_best: that were not better.
    """

    epoch: int = 0
    position: int = 0
    step: int = 0
    totals: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    wait_seconds: float = 0.0
    samples: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    line: dict[str, float] = field(default_factory=dict)
    best_metric: str = ""
    best_value: float | None = None
    best_epoch: int = 0
    evaluations_since_best: int = 0

    @property
    def place(self) -> str:
        """Where training stands; epochs count from 1."""
        within = f"epoch {self.epoch + 1}, sample {self.position}"
        return f"step {self.step}, {f'after epoch {self.epoch}' if self.step and not self.position else within}"

    def forget_best(self) -> None:
        """Select anew from here on, as with other images or by another metric."""
        self.best_metric, self.best_value, self.best_epoch, self.evaluations_since_best = "", None, 0, 0

    def advance(self, num_samples: int, ends_epoch: bool) -> None:
        """Count one update; after an epoch's last, move to the next epoch."""
        self.step += 1
        self.samples += num_samples
        self.position += num_samples
        if ends_epoch:
            self.begin_epoch()

    def begin_epoch(self) -> None:
        self.epoch, self.position, self.totals = self.epoch + 1, 0, {}


class Stopwatch:
    """Throughput of a run between two readings of its progress."""

    def __init__(self, progress: Progress) -> None:
        self.before = copy(progress)

    def lap(self, progress: Progress) -> dict[str, float]:
        """Supervised images per second over all ranks, and the share of time spent waiting for data."""
        before, self.before = self.before, copy(progress)
        seconds = max(progress.seconds - before.seconds, 1e-9)
        rate = (progress.samples - before.samples) / seconds
        waiting = (progress.wait_seconds - before.wait_seconds) / seconds
        return {"images_per_second": rate, "data_wait_share": waiting, "seconds": seconds}


class TimeLeft:
    """An estimate of the training time left, once: from the updates after the first ten, which also warm up.

    It reads the host's clock only; every step already waits for its loss.

    Args:
        step: updates made when training begins or resumes.
        num_updates: of the whole training.
    """

    def __init__(self, step: int, num_updates: int) -> None:
        self.begin, self.end, self.num_updates = step + 10, step + 100, num_updates
        self.seconds = 0.0

    def after(self, progress: Progress) -> str:
        """One line after the hundredth update; otherwise nothing."""
        if progress.step == self.begin:
            self.seconds = progress.seconds
        if progress.step != self.end or self.end >= self.num_updates:
            return ""
        update = (progress.seconds - self.seconds) / (self.end - self.begin)
        left = str(timedelta(seconds=round(update * (self.num_updates - self.end))))
        return f"about {left} of training left ({update:.2g} s an update; excluding evaluation)"
