"""Asynchronous copies of scalars to the host: read when ready, an error after a deadline."""

from __future__ import annotations

import pytest
import torch

from cskd_hf.engine import scalars
from cskd_hf.engine.scalars import DeviceTimeoutError, HostCopy


class Event:
    """A stand-in for a CUDA event that completes after some polls."""

    def __init__(self, polls: int) -> None:
        self.polls = polls

    def query(self) -> bool:
        self.polls -= 1
        return self.polls < 0


def copy_with(event: Event) -> HostCopy:
    copy = HostCopy(torch.tensor([1.0, 2.0]))
    copy.event = event
    return copy


def test_scalars_are_read_once_the_device_is_done():
    assert HostCopy(torch.tensor([1.0, 2.0])).read(timeout=1.0) == [1.0, 2.0]
    event = Event(polls=3)
    assert copy_with(event).read(timeout=10.0) == [1.0, 2.0]
    assert event.polls == -1


def test_a_stuck_device_raises_at_the_deadline(monkeypatch):
    monkeypatch.setattr(scalars, "POLL_INTERVAL", 0.001)
    with pytest.raises(DeviceTimeoutError, match=r"has not finished a forward within 0\.05 s"):
        copy_with(Event(polls=10**9)).read(timeout=0.05)
