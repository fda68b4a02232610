"""Where a run stands, and how long it will take."""

from __future__ import annotations

import pytest

from cskd_hf.runs.progress import Progress, TimeLeft


@pytest.mark.parametrize(
    ("progress", "place"),
    [
        (Progress(), "step 0, epoch 1, sample 0"),
        (Progress(epoch=0, step=3, position=24), "step 3, epoch 1, sample 24"),
        (Progress(epoch=2, step=14), "step 14, after epoch 2"),
    ],
)
def test_epochs_count_from_1(progress, place):
    assert progress.place == place


@pytest.mark.parametrize("begin", [0, 500])
def test_the_time_left_is_said_once_without_the_first_slow_updates(begin):
    progress, estimate = Progress(step=begin), TimeLeft(begin, begin + 1000)
    lines = []
    for update in range(1, 301):
        progress.seconds += 60.0 if update <= 10 else 2.0
        progress.advance(8, ends_epoch=False)
        lines += filter(None, [estimate.after(progress)])
    assert lines == ["about 0:30:00 of training left (2 s an update; excluding evaluation)"]


def test_a_run_of_a_hundred_updates_needs_no_estimate():
    assert not TimeLeft(0, 100).after(Progress(step=100, seconds=9.0))
