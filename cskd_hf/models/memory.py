"""What a method remembers of every image, dealt out over the processes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cskd_hf.models.collectives import gather_padded, processes


class PredictionMemory(nn.Module):
    """Each image's last prediction and how often it was remembered; image i lies in process i mod processes.

    An image meets another process every epoch, so each step asks the owners and tells them: two small collectives of
    the global batch's predictions. Not part of the `state_dict`, which the first process alone writes: a checkpoint
    takes it from `gather_memories`. DDP leaves the shards alone (see `Objective`).

    Args:
        num_images: N.
        num_classes: K. All processes together hold N · K half floats.
    """

    def __init__(self, num_images: int, num_classes: int) -> None:
        super().__init__()
        self.predictions: Tensor
        self.visits: Tensor
        self.num_images = num_images
        self.num_processes, self.process_index = processes()
        # The last row is nobody's: what other processes own is written there, without asking the device where it goes.
        rows = -(-num_images // self.num_processes) + 1
        self.register_buffer("predictions", torch.zeros(rows, num_classes, dtype=torch.float16), persistent=False)
        self.register_buffer("visits", torch.zeros(rows, dtype=torch.int32), persistent=False)

    def _places(self, index: Tensor) -> Tensor:
        """Rows of this shard, the last one for what other processes own and for padding (-1)."""
        own = (index >= 0) & (index % self.num_processes == self.process_index)
        return torch.where(own, index // self.num_processes, len(self.visits) - 1)

    def recall(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Last predictions (B, K) in float32 and how often each image was remembered (B,); a collective.

        Args:
            index: (B,) images of the set; a process may ask for any.
        """
        asked, _ = gather_padded(index, -1)
        places = self._places(asked)
        known = (places < len(self.visits) - 1).unsqueeze(-1)
        # One tensor, so that one collective brings both; a count is exact in float32 up to 2²⁴.
        answer = torch.cat((self.predictions[places].float(), self.visits[places].float().unsqueeze(-1)), dim=-1)
        answer = answer * known
        if self.num_processes > 1:
            dist.all_reduce(answer)  # each row has one owner, the others add zero
        own = answer[self.process_index, : len(index)]
        return own[:, :-1], own[:, -1]

    def remember(self, index: Tensor, predictions: Tensor) -> None:
        """Keep (B, K) predictions of the images (B,); a collective."""
        asked, _ = gather_padded(index, -1)
        told, _ = gather_padded(predictions.to(torch.float16), 0.0)
        places = self._places(asked).flatten()
        self.predictions[places] = told.flatten(0, 1)
        # Assigned, not added up: a process with nothing of a short last batch repeats another's image.
        self.visits[places] = self.visits[places] + 1

    def gather(self) -> dict[str, Tensor]:
        """All N rows on the CPU of the first process, nothing elsewhere; a collective."""
        parts = []
        for owner in range(self.num_processes):  # one shard at a time: the device never holds two
            shard = [buffer[:-1].clone() for buffer in (self.predictions, self.visits)]
            if self.num_processes > 1:
                for tensor in shard:
                    dist.broadcast(tensor, src=owner)
            if self.process_index == 0:
                parts.append([tensor.cpu() for tensor in shard])
        if self.process_index != 0:
            return {}
        # Row r of shard p is image r · processes + p.
        whole = [torch.stack(shards, dim=1).flatten(0, 1)[: self.num_images] for shards in zip(*parts, strict=True)]
        return {"predictions": whole[0], "visits": whole[1]}

    def scatter(self, whole: Mapping[str, Tensor]) -> None:
        """Take this process's rows of what `gather` gave, on whatever number of processes."""
        for name, buffer in (("predictions", self.predictions), ("visits", self.visits)):
            own = whole[name][self.process_index :: self.num_processes]
            buffer[: len(own)] = own.to(buffer.device)


def memories(module: nn.Module) -> dict[str, PredictionMemory]:
    """The memories inside a module, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, PredictionMemory)}


def gather_memories(module: nn.Module) -> dict[str, Tensor]:
    """'name.predictions' and 'name.visits' of every memory, whole, on the first process; a collective."""
    return {f"{name}.{k}": v for name, memory in memories(module).items() for k, v in memory.gather().items()}


def scatter_memories(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put what `gather_memories` gave back into the shards."""
    for name, memory in memories(module).items():
        memory.scatter({key: tensors[f"{name}.{key}"] for key in ("predictions", "visits")})


class Remembering(nn.Module):
    """A model with a memory beside it; `forward` is the model's.

    Args:
        num_epochs: T, over which the memory gains weight.
    """

    def __init__(self, model: nn.Module, num_images: int, num_classes: int, num_epochs: int) -> None:
        super().__init__()
        self.model, self.num_epochs = model, num_epochs
        self.memory = PredictionMemory(num_images, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)
