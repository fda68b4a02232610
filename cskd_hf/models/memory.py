"""Per-image predictions of earlier epochs, sharded over the ranks (PS-KD)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cskd_hf.models.collectives import gather_padded, world_and_rank
from cskd_hf.precision import at_least_float32


class PredictionMemory(nn.Module):
    """Each image's last prediction and number of visits; image i lives on rank i mod ranks.

    An image is trained on by another rank every epoch, so each step reads from and writes to the owners: two small
    collectives over the global batch's predictions. The buffers are not part of the `state_dict`, which rank 0 alone
    saves; checkpoints take them from `gather_memories`. DDP must not broadcast them (see `Objective`).

    Args:
        num_images: N.
        num_classes: K. All ranks together hold N · K half floats.
    """

    def __init__(self, num_images: int, num_classes: int) -> None:
        super().__init__()
        self.predictions: Tensor
        self.visits: Tensor
        self.num_images = num_images
        self.world, self.rank = world_and_rank()
        # The extra last row absorbs writes for images of other ranks, which saves a device sync to filter them.
        rows = -(-num_images // self.world) + 1
        self.register_buffer("predictions", torch.zeros(rows, num_classes, dtype=torch.float16), persistent=False)
        self.register_buffer("visits", torch.zeros(rows, dtype=torch.int32), persistent=False)

    def _rows(self, index: Tensor) -> Tensor:
        """Rows of this shard; the last one for images of other ranks and for padding (-1)."""
        own = (index >= 0) & (index % self.world == self.rank)
        return torch.where(own, index // self.world, len(self.visits) - 1)

    def recall(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Last predictions (B, K), at least float32, and numbers of visits (B,); a collective.

        Args:
            index: (B,) images, on whichever rank they live.
        """
        requested, _ = gather_padded(index, -1)
        rows = self._rows(requested)
        owned = (rows < len(self.visits) - 1).unsqueeze(-1)
        # One tensor, so that one collective suffices; counts are exact in float32 up to 2²⁴.
        predictions, visits = at_least_float32(self.predictions[rows]), self.visits[rows].unsqueeze(-1)
        values = torch.cat((predictions, visits.to(predictions)), dim=-1) * owned
        if self.world > 1:
            dist.all_reduce(values)  # each row has one owner, the other ranks add zero
        own = values[self.rank, : len(index)]
        return own[:, :-1], own[:, -1]

    def remember(self, index: Tensor, predictions: Tensor) -> None:
        """Store the predictions (B, K) of the images (B,); a collective."""
        all_index, _ = gather_padded(index, -1)
        all_predictions, _ = gather_padded(predictions.to(self.predictions.dtype), 0.0)
        rows = self._rows(all_index).flatten()
        self.predictions[rows] = all_predictions.flatten(0, 1)
        # Assigned, not accumulated: an image that is twice in a global batch counts as one visit.
        self.visits[rows] = self.visits[rows] + 1

    def gather(self) -> dict[str, Tensor]:
        """All N rows on the CPU of rank 0, nothing on the others; a collective."""
        shards = []
        for owner in range(self.world):  # one shard at a time: the device never holds two
            shard = [buffer[:-1].clone() for buffer in (self.predictions, self.visits)]
            if self.world > 1:
                for tensor in shard:
                    dist.broadcast(tensor, src=owner)
            if self.rank == 0:
                shards.append([tensor.cpu() for tensor in shard])
        if self.rank != 0:
            return {}
        # Row r of rank p is image r · ranks + p.
        predictions, visits = (
            torch.stack(parts, dim=1).flatten(0, 1)[: self.num_images] for parts in zip(*shards, strict=True)
        )
        return {"predictions": predictions, "visits": visits}

    def scatter(self, gathered: Mapping[str, Tensor]) -> None:
        """Load this rank's rows of what `gather` returned, on any number of ranks."""
        for name, buffer in self.named_buffers():
            own = gathered[name][self.rank :: self.world]
            buffer[: len(own)] = own.to(buffer.device)


def memories(module: nn.Module) -> dict[str, PredictionMemory]:
    """The memories inside a module, by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, PredictionMemory)}


def gather_memories(module: nn.Module) -> dict[str, Tensor]:
    """'name.predictions' and 'name.visits' of every memory, on rank 0; a collective."""
    return {f"{name}.{k}": v for name, memory in memories(module).items() for k, v in memory.gather().items()}


def memory_shapes(module: nn.Module) -> dict[str, list[int]]:
    """The shapes of what `gather_memories` returns."""
    return {
        f"{name}.{key}": [memory.num_images, *buffer.shape[1:]]
        for name, memory in memories(module).items()
        for key, buffer in memory.named_buffers()
    }


def scatter_memories(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `gather_memories` returned."""
    for name, memory in memories(module).items():
        memory.scatter({key: tensors[f"{name}.{key}"] for key, _ in memory.named_buffers()})


class ModelWithMemory(nn.Module):
    """A model and its prediction memory; `forward` is the model's.

    Args:
        num_epochs: T, over which α grows.
    """

    def __init__(self, model: nn.Module, num_images: int, num_classes: int, num_epochs: int) -> None:
        super().__init__()
        self.model, self.num_epochs = model, num_epochs
        self.memory = PredictionMemory(num_images, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)
