"""What a loss may need of the other processes' images; on one process, each function is the plain computation."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def processes() -> tuple[int, int]:
    """How many train together, and which one this is."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_world_size(), dist.get_rank()
    return 1, 0


def gather_padded(rows: Tensor, fill: float) -> tuple[Tensor, list[int]]:
    """Every process's rows, whose numbers may differ.

    Args:
        rows: (B, ...) of this process; the other dimensions are the same everywhere.
        fill: what the missing rows hold.

    Returns:
        (processes, largest B, ...), the same everywhere and cut from the graph, and each process's B.
    """
    num_processes, _ = processes()
    rows = rows.detach()
    if num_processes == 1:
        return rows[None], [len(rows)]
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(num_processes)]
    dist.all_gather(counts, count)
    sizes = torch.cat(counts).tolist()  # this is a CPU-GPU sync point
    padded = rows.new_full((max(sizes), *rows.shape[1:]), fill)
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(num_processes)]
    dist.all_gather(parts, padded)
    return torch.stack(parts), sizes


def gather_rows(rows: Tensor) -> Tensor:
    """(B, ...) of each process → (ΣB, ...) in their order, the same everywhere and cut from the graph."""
    padded, sizes = gather_padded(rows, 0.0)
    return torch.cat([part[:size] for part, size in zip(padded, sizes, strict=True)])


def gather_counted(rows: Tensor, index: Tensor) -> Tensor:
    """`gather_rows` without those of a process that has no share of a batch: it repeats a key, under the index -1."""
    return rows.detach() if processes()[0] == 1 else gather_rows(rows[index >= 0])


def global_mean(rows: Tensor, index: Tensor) -> Tensor:
    """Mean over dimension 0 and over all processes, in value; its gradient is that of this process's own mean.

    Averaged over the processes, as DDP does, weighted by their rows, as the training loop does, that gradient is the
    one of the global mean.

    Args:
        rows: (B, D).
        index: (B,), a batch's: rows of an image -1 do not count.
    """
    own = rows.mean(dim=0)
    return own + (gather_counted(rows, index).mean(dim=0) - own).detach()
