"""Stopping when asked to, with a checkpoint: signals and a limit of hours, agreed on by all processes."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

STOPPED = 143  # 128 + SIGTERM: not finished, the same command goes on
INTERRUPTED = 130  # 128 + SIGINT

# Launchers pass on a signal that a terminal or a scheduler has sent to every process already: the second counts only
# after so many seconds.
SECOND_AFTER = 3.0
_OUT_OF_TIME = 1000  # beside the numbers of signals


class StopRequest:
    """Turns SIGTERM, SIGINT, SIGUSR1 and `run.max_hours` into one answer, the same in every process at the same step.

    The first signal asks; a second one, at least three seconds later, kills at once.

    Args:
        accelerator: its processes agree.
        max_hours: since the process started; None: no limit.
        every: asks the other processes at each so-many-th call of `agreed`, one small collective.
    """

    def __init__(self, accelerator: Accelerator, max_hours: float | None = None, every: int = 10) -> None:
        self.accelerator, self.every = accelerator, every
        self.deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.asked = 0
        self.asked_at = 0.0
        self.calls = 0
        self.answer = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self.before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked:
            self.asked, self.asked_at = number, now
        elif now - self.asked_at >= SECOND_AFTER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self, ask_now: bool = False) -> bool:
        """Whether to stop here. Every process calls it at the same places, as often as the others.

        Args:
            ask_now: ask the other processes in this call, whatever its number.
        """
        if self.answer:
            return True
        own = self.asked
        if not own and self.deadline is not None and time.monotonic() >= self.deadline:
            own = _OUT_OF_TIME
        self.calls += 1
        if self.accelerator.num_processes == 1:
            self.answer = own
        elif ask_now or self.calls % self.every == 0:
            # A wait for the device, once in `every` calls.
            highest = torch.tensor(own, device=self.accelerator.device)
            torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
            self.answer = int(highest)
        return self.answer != 0

    @property
    def reason(self) -> str:
        """What asked, in words."""
        return "run.max_hours" if self.answer == _OUT_OF_TIME else signal.Signals(self.answer).name

    @property
    def status(self) -> int:
        """The exit status: 130 after a Ctrl-C, else 143."""
        return INTERRUPTED if self.answer == signal.SIGINT else STOPPED
