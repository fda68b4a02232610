"""Where a run stands, and its throughput between two readings."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands: everything that resuming needs beside weights and optimizer.

    Attributes:
        epoch: the one being trained, from 0; equals `num_epochs` when training is over.
        position: samples of this epoch already trained on, over all processes.
        step: updates made since the start.
        totals: this epoch's sums over those samples of every logged term, where a restart cut the epoch.
        seconds, wait_seconds: spent training, and in it waiting for data.
        samples: supervised images since the start, over all processes.
        skipped: unreadable training images met so far, row → what was wrong.
        line: metrics.jsonl's of the epoch that has just ended, while its evaluation is not done.
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


class Stopwatch:
    """Throughput between two readings of a run's progress."""

    def __init__(self, progress: Progress) -> None:
        self._mark(progress)

    def _mark(self, progress: Progress) -> None:
        self.samples, self.seconds, self.waited = progress.samples, progress.seconds, progress.wait_seconds

    def lap(self, progress: Progress) -> dict[str, float]:
        """Supervised images a second over all processes, and the share of the time spent waiting for data."""
        seconds = max(progress.seconds - self.seconds, 1e-9)
        waited = progress.wait_seconds - self.waited
        samples = progress.samples - self.samples
        self._mark(progress)
        return {"images_per_second": samples / seconds, "data_wait_share": waited / seconds, "seconds": seconds}
