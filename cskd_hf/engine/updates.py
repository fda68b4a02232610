"""The training step: group micro-batches, forward and backward each, apply the optimizer.

`training_updates` yields once per optimizer step. Logging, evaluation and checkpoints belong to the caller.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cskd_hf.batch import Batch
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.transfer import to_device
from cskd_hf.engine.learner import Learner
from cskd_hf.engine.scalars import HostCopy, Totals
from cskd_hf.models.layers import restore_running_statistics
from cskd_hf.recipe.sections import RunSection
from cskd_hf.runs.progress import Progress


class NonFiniteLossError(RuntimeError):
    """A loss term is NaN or infinite; the optimizer has not stepped."""

    def __init__(self, step: int, terms: dict[str, float], batch: Batch) -> None:
        self.step, self.terms, self.batch = step, terms, batch
        bad = ", ".join(f"{name} = {value}" for name, value in terms.items() if not np.isfinite(value))
        super().__init__(f"step {step}: {bad}")


@dataclass(frozen=True)
class Update:
    """One optimizer step.

    Attributes:
        epoch: the epoch trained in, from 0.
        step: updates made, including this one.
        lr: learning rate of the step; the largest, if layers differ.
        terms: every logged scalar of this rank's last micro-batch, on the device; reading one syncs.
        totals: of the epoch so far; `totals.read` is a collective.
        ends_epoch: whether this is the epoch's last update.
    """

    epoch: int
    step: int
    lr: float
    terms: dict[str, Tensor]
    totals: Totals
    ends_epoch: bool


class MicroBatch(NamedTuple):
    """How many samples a global batch has, and how many of them are this rank's."""

    total: int
    own: int


def group_micro_batches(batches: GlobalBatches, position: int, steps: int) -> list[MicroBatch]:
    """The micro-batches of the next update: at most `steps`, fewer at the end of the epoch."""
    group: list[MicroBatch] = []
    while position < batches.num_samples and len(group) < steps:
        group.append(MicroBatch(*batches.counts(position)))
        position += group[-1].total
    return group


def training_updates(
    learner: Learner,
    loader: Iterable[Batch],
    batches: GlobalBatches,
    accelerator: Accelerator,
    progress: Progress,
    settings: RunSection,
    num_epochs: int,
) -> Iterator[Update]:
    """Train from `progress` to the end of `num_epochs`, yielding once per optimizer step.

    `progress` advances before the yield (past an epoch's last step: to the next epoch), so a checkpoint saved by the
    caller resumes with the next step. Each step sets train mode, so the caller may evaluate in between.

    Args:
        learner: what the updates change.
        loader: iterates over `batches`.
        settings: accumulation, clipping, gradient checkpointing, seed.
        num_epochs: including warm-up and cool-down.

    Raises:
        NonFiniteLossError: before the optimizer steps.
    """
    update_samples = batches.global_batch_size * settings.gradient_accumulation_steps
    updates_per_epoch = -(-batches.num_samples // update_samples)
    while progress.epoch < num_epochs:
        if progress.position >= batches.num_samples:
            progress.begin_epoch()  # resumed with larger batches and drop_last: the rest of the epoch does not fill one
            continue
        learner.scheduler.step(progress.epoch)
        batches.start_epoch(progress.epoch, progress.position)
        totals = Totals(accelerator.device, progress.totals)
        batch_iterator = iter(loader)
        ends_epoch = False
        while not ends_epoch:
            started = time.perf_counter()
            learner.train(progress.epoch)
            # Not `progress.step`: earlier updates may have been of another size, on another number of ranks.
            learner.scheduler.step_update(progress.epoch * updates_per_epoch + progress.position // update_samples)
            _seed_step(settings.seed, progress.step, accelerator.process_index)

            group = group_micro_batches(batches, progress.position, settings.gradient_accumulation_steps)
            group_samples = sum(micro.total for micro in group)
            for micro in group:
                terms = forward_backward(
                    learner.objective,
                    _next_batch(batch_iterator, progress),
                    accelerator,
                    totals,
                    settings,
                    num_samples=micro.own,
                    group_samples=group_samples,
                    all_reduce=micro is group[-1],
                    step=progress.step,
                )
            ends_epoch = progress.position + group_samples >= batches.num_samples
            lr = apply_update(learner, accelerator, settings.clip_grad, progress.epoch, ends_epoch)

            update = Update(progress.epoch, progress.step + 1, lr, terms, totals, ends_epoch)
            progress.seconds += time.perf_counter() - started
            progress.advance(group_samples, ends_epoch)
            yield update


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch as a pure function of (seed, step, rank): resuming has no generator state to restore."""
    (mixed,) = np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(mixed >> np.uint64(1)))


def _next_batch(batch_iterator: Iterator[Batch], progress: Progress) -> Batch:
    """The loader's next batch; the time spent waiting for it and its unreadable images go into `progress`."""
    started = time.perf_counter()
    batch = next(batch_iterator)
    progress.wait_seconds += time.perf_counter() - started
    progress.skipped.update(batch.skipped)
    return batch


def forward_backward(
    objective: nn.Module,
    batch: Batch,
    accelerator: Accelerator,
    totals: Totals,
    settings: RunSection,
    *,
    num_samples: int,
    group_samples: int,
    all_reduce: bool,
    step: int,
) -> dict[str, Tensor]:
    """Accumulate the gradient of one micro-batch; returns its logged terms, on the device.

    Args:
        totals: the epoch's sums, to which the terms are added.
        settings: of these, `grad_checkpointing` and `ddp_timeout`, the longest wait for the device.
        num_samples: of this rank's share; 0 if it only repeats a key.
        group_samples: of the whole update, on all ranks.
        all_reduce: whether DDP averages gradients here, in the group's last micro-batch.

    Raises:
        NonFiniteLossError: a term is not finite.
        DeviceTimeoutError: the device is stuck, most likely in a collective with a lost rank.
    """
    images, target, index = (to_device(part, accelerator.device) for part in batch[:3])
    if num_samples == 0:  # padding: weight zero, and no prediction memory may store it
        index = torch.full_like(index, -1)
    with nullcontext() if all_reduce else accelerator.no_sync(objective):
        result = objective(Batch(images, target, index))
        terms = {name: value.detach() for name, value in result.items() if name not in ("output", "target")}
        host_terms = HostCopy(torch.stack(list(terms.values())))
        # DDP averages over ranks; every sample of the group weighs the same wherever it is.
        weight = num_samples * accelerator.num_processes / group_samples
        with restore_running_statistics(objective) if settings.grad_checkpointing else nullcontext():
            accelerator.backward(result["loss"] * weight)
    correct = (result["output"].argmax(dim=-1) == result["target"]).float().mean()
    totals.add({**terms, "top1_error": 100 * (1 - correct), "samples": torch.ones_like(correct)}, num_samples)
    # 0.9: before NCCL's own watchdog, which aborts the process.
    # The step's only sync, with the forward alone: the backward is already queued and keeps the device busy.
    values = dict(zip(terms, host_terms.read(0.9 * settings.ddp_timeout), strict=True))
    if not np.isfinite(list(values.values())).all():
        raise NonFiniteLossError(step, values, batch)
    return terms


def apply_update(
    learner: Learner, accelerator: Accelerator, clip_grad: float | None, epoch: int, ends_epoch: bool
) -> float:
    """Clip, step and zero the gradients; returns the step's largest learning rate."""
    lr = max(group["lr"] for group in learner.optimizer.param_groups)
    with learner.heads_alone(epoch):
        if clip_grad is not None:
            accelerator.clip_grad_norm_(learner.objective.parameters(), clip_grad)
        learner.optimizer.step()
        if ends_epoch:
            learner.sync_lookahead()
    learner.optimizer.zero_grad(set_to_none=learner.set_to_none)
    return lr
