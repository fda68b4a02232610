"""The learning rate of every epoch, as timm will set it, in words. Epochs count from 1."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from timm.scheduler import create_scheduler_v2

from cskd_hf.recipe.sections import SchedulerSection, TransformSection

MAX_DROPS = 4  # that one line lists


def rates_by_epoch(scheduler: SchedulerSection, lr: float, updates_per_epoch: int) -> list[float]:
    """The rate at the first update of each epoch.

    Example:
        >>> schedule = SchedulerSection(sched="multistep", num_epochs=4, decay_milestones=(3,))
        >>> [round(rate, 3) for rate in rates_by_epoch(schedule, 0.1, updates_per_epoch=10)]
        [0.1, 0.1, 0.01, 0.01]
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
    timms, _ = create_scheduler_v2(optimizer, **scheduler.keywords, updates_per_epoch=updates_per_epoch)
    rates = []
    for epoch in range(scheduler.total_epochs):
        timms.step(epoch)
        timms.step_update(epoch * updates_per_epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def describe_schedule(scheduler: SchedulerSection, rates: Sequence[float]) -> str:
    """Warm-up, then each drop with its epoch, or the shape and the last rate."""
    warmup = scheduler.warmup_epochs
    words = [f"{warmup} warm-up epochs from {rates[0]:g}"] if warmup else []
    if scheduler.sched in ("multistep", "step"):
        drops = [
            f"{rate:.3g} from epoch {epoch}"
            for epoch, (before, rate) in enumerate(pairwise(rates), start=2)
            if epoch > warmup + 1 and rate != before
        ]
        if len(drops) > MAX_DROPS:
            drops = [*drops[: MAX_DROPS - 1], "…", drops[-1]]
        words += drops or ["no drop"]
    elif scheduler.sched != "none":
        words += [f"{scheduler.sched} to {rates[-1]:.3g} in epoch {len(rates)}"]
    return ", ".join(words or ["constant"])


def size_note(transform: TransformSection, scheduler: SchedulerSection) -> list[str]:
    """A warning if training ends before it reaches `transform.input_size`."""
    late = [last for last, _ in transform.size_schedule if last >= scheduler.total_epochs]
    if not late:
        return []
    return [
        f"transform.size_schedule: training ends with epoch {scheduler.total_epochs}, before it reaches "
        "transform.input_size; shorten the schedule"
    ]


def rate_notes(scheduler: SchedulerSection, lr: float, rates: Sequence[float]) -> list[str]:
    """Warnings if the rate never reaches `lr`, exceeds it, or ends at 0."""
    notes = []
    if scheduler.warmup_epochs >= scheduler.total_epochs:
        notes.append(
            f"scheduler.warmup_epochs: training ends with epoch {scheduler.total_epochs}, in the warm-up, before the "
            f"rate reaches {lr:g}; write a smaller number, or more epochs"
        )
    if max(rates) > lr:
        key = "warmup_lr" if rates[0] > lr else "min_lr"
        notes.append(
            f"scheduler.{key}: {getattr(scheduler, key):g} is above the learning rate, {lr:g}; write a smaller number"
        )
    if scheduler.cooldown_epochs and rates[-1] == 0:
        notes.append(
            f"scheduler.cooldown_epochs: the last {scheduler.cooldown_epochs} epochs have rate 0 and train no weight; "
            "leave them out, or write scheduler.min_lr"
        )
    return notes


def milestone_note(scheduler: SchedulerSection) -> list[str]:
    """A warning if a drop would come after training: timm then leaves the rate as it is."""
    epochs = scheduler.total_epochs
    late: list[float]
    if scheduler.sched == "multistep":
        last = epochs if scheduler.step_on_epochs else epochs - 1
        late = [milestone for milestone in scheduler.decay_milestones if milestone > last]
        key, instead = "decay_milestones", f"[{epochs // 2 + 1},{epochs * 3 // 4 + 1}]"
    elif scheduler.sched == "step" and scheduler.decay_epochs is not None:
        late = [scheduler.decay_epochs] if scheduler.decay_epochs >= epochs else []
        key, instead = "decay_epochs", f"{max(epochs // 3, 1)}"
    else:
        return []
    if not late or scheduler.decay_rate == 1:
        return []
    return [
        f"scheduler.{key}: no drop at {', '.join(f'{number:g}' for number in late)}: training ends with epoch "
        f"{epochs}; write 'scheduler.{key}={instead}'"
    ]
