"""The training loop, as a generator of updates: logging, evaluation and checkpoints stay with the caller."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from cskd_hf.batch import Batch
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.transfer import to_device
from cskd_hf.models.layers import restore_running_statistics
from cskd_hf.runs.progress import Progress


class NonFiniteLossError(RuntimeError):
    """A term of the loss is NaN or infinite; the optimizer has not stepped."""

    def __init__(self, step: int, terms: dict[str, float], batch: Batch) -> None:
        self.step, self.terms, self.batch = step, terms, batch
        bad = ", ".join(f"{name} = {value}" for name, value in terms.items() if not np.isfinite(value))
        super().__init__(f"step {step}: {bad}")


class Totals:
    """Sums of logged terms over an epoch's samples, kept on the device so that no step waits for it."""

    def __init__(self, device: torch.device, start: dict[str, float]) -> None:
        self.device, self.start = device, start
        self.sums: dict[str, Tensor] = {}

    def add(self, terms: dict[str, Tensor], count: int) -> None:
        for name, value in terms.items():
            # float64, so that a resumed epoch's means equal an uninterrupted one's; mps has none.
            wide = value.to(torch.float32 if self.device.type == "mps" else torch.float64) * count
            self.sums[name] = self.sums[name] + wide if name in self.sums else wide

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """Sums over all processes, those from before a restart included. A wait for the device, and a collective."""
        if not self.sums:
            return self.start
        reduced = accelerator.reduce(torch.stack(list(self.sums.values())), reduction="sum").tolist()
        return {name: value + self.start.get(name, 0.0) for name, value in zip(self.sums, reduced, strict=True)}


@dataclass(frozen=True)
class Update:
    """What one optimizer step leaves for the caller.

    Attributes:
        epoch: the one trained in; step: updates made, this one included.
        lr: learning rate of the step (the largest, where layers have their own).
        terms: each logged scalar of this process's last micro-batch, on the device; reading one waits for it.
        totals: of the epoch so far; `totals.read` is a collective.
        ends_epoch: the epoch's last update.
    """

    epoch: int
    step: int
    lr: float
    terms: dict[str, Tensor]
    totals: Totals
    ends_epoch: bool


class _HostCopy:
    """A few device numbers on their way to the host while the device goes on working."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.to("cpu", non_blocking=True)  # into pinned memory, where the source is a CUDA tensor
        self.event = None
        if values.device.type == "cuda":
            self.event = torch.cuda.Event()
            self.event.record()
        elif values.device.type != "cpu":
            self.values = values.cpu()  # a wait: other devices have no such event

    def read(self) -> list[float]:
        if self.event is not None:
            self.event.synchronize()
        return self.values.tolist()


def training_updates(
    objective: torch.nn.Module,
    optimizer: Any,
    scheduler: Any,
    loader: DataLoader[Any],
    batches: GlobalBatches,
    accelerator: Accelerator,
    progress: Progress,
    *,
    num_epochs: int,
    gradient_accumulation_steps: int = 1,
    clip_grad: float | None = None,
    grad_checkpointing: bool = False,
    seed: int = 0,
) -> Iterator[Update]:
    """Train from where `progress` stands to the end of `num_epochs`, one yield an optimizer step.

    `progress` is moved before the yield, to the next epoch after an epoch's last step, so a checkpoint taken there goes
    on with the next step. The caller may evaluate and save in between; each step puts the module in train mode itself.

    Args:
        objective: a prepared `Objective`.
        optimizer: prepared; `scheduler`: timm's, not prepared, or None.
        loader: over `batches`.
        num_epochs: including warm-up and cool-down.
        clip_grad: largest global L2 norm.
        grad_checkpointing: the backward recomputes activations; running statistics must not move again.
        seed: of dropout and everything else random on the device, together with step and process.

    Raises:
        NonFiniteLossError: before the optimizer steps.
    """
    world = accelerator.num_processes
    while progress.epoch < num_epochs:
        if progress.position >= batches.num_samples:
            # Restarted with larger global batches and drop_last: what is left of the epoch does not fill one.
            progress.epoch, progress.position, progress.totals = progress.epoch + 1, 0, {}
            continue
        if scheduler is not None:
            scheduler.step(progress.epoch)
        batches.start_epoch(progress.epoch, progress.position)
        totals = Totals(accelerator.device, progress.totals)
        arriving = iter(loader)
        before = time.perf_counter()
        while True:
            objective.train()
            if scheduler is not None:
                scheduler.step_update(progress.step)
            # A pure function of (seed, step, process): resuming has no generator state to restore.
            mixed = np.random.SeedSequence([seed, progress.step, accelerator.process_index]).generate_state(
                1, np.uint64
            )
            torch.manual_seed(int(mixed[0] >> np.uint64(1)))

            counts: list[tuple[int, int]] = []
            position = progress.position
            while position < batches.num_samples and len(counts) < gradient_accumulation_steps:
                counts.append(batches.counts(position))
                position += counts[-1][0]
            group_samples = sum(total for total, _ in counts)

            for micro, (_, own) in enumerate(counts):
                waiting = time.perf_counter()
                batch: Batch = next(arriving)
                progress.wait_seconds += time.perf_counter() - waiting
                progress.skipped.update(batch.skipped)
                images, target, index = (to_device(part, accelerator.device) for part in batch[:3])
                if own == 0:  # a process without a share repeats a key: it counts for nothing, nobody remembers it
                    index = torch.full_like(index, -1)
                is_last = micro == len(counts) - 1
                with nullcontext() if is_last else accelerator.no_sync(objective):
                    result = objective(Batch(images, target, index))
                    terms = {k: v.detach() for k, v in result.items() if k not in ("output", "target")}
                    arriving_terms = _HostCopy(torch.stack(list(terms.values())))
                    # DDP averages over processes; each sample of the group shall weigh the same wherever it is.
                    with restore_running_statistics(objective) if grad_checkpointing else nullcontext():
                        accelerator.backward(result["loss"] * (own * world / group_samples))
                hits = (result["output"].argmax(dim=-1) == result["target"]).float().mean()
                totals.add({**terms, "top1_error": 100 * (1 - hits), "samples": torch.ones_like(hits)}, own)
                # A wait for the forward only: the device is busy with the backward, which is already queued.
                values = dict(zip(terms, arriving_terms.read(), strict=True))
                if not np.isfinite(list(values.values())).all():
                    raise NonFiniteLossError(progress.step, values, batch)

            if clip_grad is not None:
                accelerator.clip_grad_norm_(objective.parameters(), clip_grad)
            lr = max(group["lr"] for group in optimizer.param_groups)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            ends_epoch = position >= batches.num_samples
            update = Update(progress.epoch, progress.step + 1, lr, terms, totals, ends_epoch)
            progress.step += 1
            progress.samples += group_samples
            progress.epoch, progress.position = (progress.epoch + 1, 0) if ends_epoch else (progress.epoch, position)
            progress.totals = {} if ends_epoch else progress.totals
            progress.seconds += time.perf_counter() - before
            yield update
            before = time.perf_counter()
            if ends_epoch:
                break
