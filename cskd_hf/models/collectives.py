"""Collectives over the images of all ranks; in a single process each is the plain computation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def world_and_rank() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def gather_padded(rows: Tensor, fill: float) -> tuple[Tensor, list[int]]:
    """All-gather rows whose number may differ from rank to rank.

    Args:
        rows: (B, ...); only B may differ between ranks.
        fill: the value of the padding.

    Returns:
        (ranks, largest B, ...), detached and the same on every rank, and each rank's B.
    """
    world, _ = world_and_rank()
    rows = rows.detach()
    if world == 1:
        return rows[None], [len(rows)]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(world)]
    dist.all_gather(counts, count)
    sizes = torch.cat(counts).tolist()  # device sync
    padded = rows.new_full((max(sizes), *rows.shape[1:]), fill)
    padded[: len(rows)] = rows
    shards = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(shards, padded)
    return torch.stack(shards), sizes


def gather_counted(rows: Tensor, index: Tensor) -> Tensor:
    """(B, ...) of each rank → (ΣB, ...) in rank order, detached and the same on every rank.

    Args:
        index: (B,), the batch's. A rank without a share of a batch repeats a key under the index -1: those rows are
            dropped.
    """
    if world_and_rank()[0] == 1:
        return rows.detach()
    padded, sizes = gather_padded(rows[index >= 0], 0.0)
    return torch.cat([shard[:size] for shard, size in zip(padded, sizes, strict=True)])


def global_mean(rows: Tensor, index: Tensor) -> Tensor:
    """The mean of (B, D) rows over dimension 0 and over all ranks, with the gradient of this rank's own mean.

    Averaged over ranks as DDP does, weighted by their number of rows as the training loop does, this gradient is that
    of the global mean.

    Args:
        index: (B,), the batch's; rows with index -1 do not count.
    """
    own = rows.mean(dim=0)
    return own + (gather_counted(rows, index).mean(dim=0) - own).detach()


def global_sum(rows: Tensor, index: Tensor) -> Tensor:
    """The sum of (B, D) rows over dimension 0 and over all ranks: `global_mean` times their number."""
    every = gather_counted(rows, index)
    own = len(every) * rows.mean(dim=0)
    return own + (every.sum(dim=0) - own).detach()
