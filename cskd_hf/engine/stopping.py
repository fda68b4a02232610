"""Stop on request with a checkpoint: signals and `run.max_hours`, agreed on by all ranks."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator

from cskd_hf.engine.scalars import HostCopy

STOPPED = 143  # 128 + SIGTERM: unfinished, rerun to resume
INTERRUPTED = 130  # 128 + SIGINT

# Launchers forward signals that a terminal or scheduler has already sent to every process: a second signal only counts
# after this many seconds.
SECOND_AFTER = 3.0
_OUT_OF_TIME = 1000  # outside the range of signal numbers


class StopRequest:
    """Turns SIGTERM, SIGINT, SIGUSR1 and `run.max_hours` into one answer, the same on every rank at the same step.

    The first signal requests a stop; a second one, at least three seconds later, kills the process.

    Args:
        accelerator: whose ranks agree.
        max_hours: from now; None for no limit.
        every: all-reduce in every `every`-th call of `agreed`; the answer is read in the next one.
        timeout: seconds to wait for the other ranks.
    """

    def __init__(
        self, accelerator: Accelerator, max_hours: float | None = None, every: int = 10, timeout: float = 1800.0
    ) -> None:
        self.accelerator, self.every, self.timeout = accelerator, every, timeout
        self.pending: HostCopy | None = None
        self.deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self.signal = 0
        self.signal_time = 0.0
        self.calls = 0
        self.answer = 0
        self.previous_handlers: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self.previous_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self.signal_time = number, now
        elif now - self.signal_time >= SECOND_AFTER:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def agreed(self, ask_now: bool = False) -> bool:
        """Whether to stop here. Every rank calls it at the same places and equally often.

        Args:
            ask_now: all-reduce in this call, regardless of `every`.
        """
        if self.answer:
            return True
        own = self.signal
        if not own and self.deadline is not None and time.monotonic() >= self.deadline:
            own = _OUT_OF_TIME
        self.calls += 1
        if self.accelerator.num_processes == 1:
            self.answer = own
        elif ask_now:
            self.answer, self.pending = self._read(self._all_reduce(own)), None
        elif self.pending is not None:
            # Started one call ago, it has finished by now: reading it does not drain the device's queue.
            self.answer, self.pending = self._read(self.pending), None
        elif self.calls % self.every == 0:
            self.pending = self._all_reduce(own)
        return self.answer != 0

    def _all_reduce(self, own: int) -> HostCopy:
        highest = torch.full((1,), own, device=self.accelerator.device)
        torch.distributed.all_reduce(highest, op=torch.distributed.ReduceOp.MAX)
        return HostCopy(highest)

    def _read(self, answer: HostCopy) -> int:
        return int(answer.read(self.timeout)[0])

    @property
    def reason(self) -> str:
        """The signal's name, or run.max_hours."""
        return "run.max_hours" if self.answer == _OUT_OF_TIME else signal.Signals(self.answer).name

    @property
    def status(self) -> int:
        """The exit status: 130 after Ctrl-C, else 143."""
        return INTERRUPTED if self.answer == signal.SIGINT else STOPPED
