"""The progress of a run, and its throughput."""

from __future__ import annotations

from dataclasses import dataclass, field


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
        self._mark(progress)

    def _mark(self, progress: Progress) -> None:
        self.samples, self.seconds, self.wait_seconds = progress.samples, progress.seconds, progress.wait_seconds

    def lap(self, progress: Progress) -> dict[str, float]:
        """Supervised images per second over all ranks, and the share of time spent waiting for data."""
        seconds = max(progress.seconds - self.seconds, 1e-9)
        wait_seconds = progress.wait_seconds - self.wait_seconds
        samples = progress.samples - self.samples
        self._mark(progress)
        return {"images_per_second": samples / seconds, "data_wait_share": wait_seconds / seconds, "seconds": seconds}
