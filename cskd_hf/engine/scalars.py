"""Logged scalars on their way from the device to the host, without a sync per step."""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from torch import Tensor

# Seconds between two polls of the device. The backward is queued behind what is waited for, so the device stays busy.
POLL_INTERVAL = 1e-4


class DeviceTimeoutError(RuntimeError):
    """The device is stuck, most likely in a collective with a lost rank."""


class Totals:
    """Per-sample sums of an epoch's logged terms, kept on the device: adding never syncs."""

    def __init__(self, device: torch.device, start: dict[str, float]) -> None:
        self.device, self.start = device, start
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor], count: int) -> None:
        for name, value in terms.items():
            # float64, so that a resumed epoch's means equal an uninterrupted one's; MPS has no float64.
            wide = value.to(torch.float32 if self.device.type == "mps" else torch.float64) * count
            self.sums[name] = self.sums[name] + wide if name in self.sums else wide

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Sums over all ranks, including those from before a restart. A device sync and an all-reduce."""
        if not self.sums:
            return self.start
        reduced = accelerator.reduce(torch.stack(list(self.sums.values())), reduction="sum").tolist()
        return {name: value + self.start.get(name, 0.0) for name, value in zip(self.sums, reduced, strict=True)}


class HostCopy:
    """A few scalars copied to the host while the device keeps working."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)  # into pinned memory if the source is a CUDA tensor
        self.event = None
        if values.device.type == "cuda":
            self.event = torch.cuda.Event()
            self.event.record()
        elif values.device.type != "cpu":
            self.values = values.cpu()  # a device sync: other devices have no such event

    def read(self, timeout: float) -> list[float]:
        """The scalars, once the device has produced them.

        Polls instead of blocking: a rank waiting in an NCCL all-reduce for a lost one would never return from
        `synchronize`, and spinning there would take a core from the loader workers.

        Args:
            timeout: seconds.

        Raises:
            DeviceTimeoutError: the device did not get there in time.
        """
        deadline = time.monotonic() + timeout
        while self.event is not None and not self.event.query():
            if time.monotonic() > deadline:
                raise DeviceTimeoutError(f"the device has not finished a forward within {timeout:g} s")
            time.sleep(POLL_INTERVAL)
        return self.values.tolist()
