"""What test_methods_distributed.py looks at: every method trained by this process among however many there are.

    torchrun --nproc_per_node=2 two_processes.py OUT CHECKPOINT RUN

Writes OUT/<what>-<rank>.safetensors. CHECKPOINT is of PS-KD, made by one process; RUN is a run folder of PS-KD, left by
one process within an epoch, which the real command takes to its end.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from method_cases import method_of, small_network
from safetensors.torch import save_file
from tiny_runs import Run
from torch import Tensor, nn

from cskd_hf import train
from cskd_hf.methods import METHODS
from cskd_hf.models.collectives import gather_rows, global_mean, processes
from cskd_hf.models.memory import PredictionMemory

CLASSES = ("a", "b", "c")
GLOBAL_BATCH = 4
UPDATES, STOP = 9, 4  # six an epoch
# The last batch of an epoch: two images, one for each process; or one, and nothing for the second process.
NUM_IMAGES = {"even": 22, "odd": 21}


def network() -> nn.Module:
    """No image's output depends on the others': GroupNorm for BatchNorm, no dropout."""
    return small_network(len(CLASSES), norm=lambda channels: nn.GroupNorm(1, channels))


def make_run(name: str, num_images: int = NUM_IMAGES["even"]) -> Run:
    world = Accelerator(cpu=True).num_processes
    return Run(
        method=method_of(name, CLASSES),
        network=network,
        num_images=num_images,
        batch_size=GLOBAL_BATCH // world,
        lr=0.05,
        num_epochs=2,
        double=True,
    )


def trained(name: str, num_images: int) -> dict[str, Tensor]:
    run = make_run(name, num_images)
    run.train(UPDATES)
    return run.state()


def shards_after_training() -> dict[str, Tensor]:
    """This process's own part of the memory, as DDP left it."""
    run = make_run("pskd")
    run.train(UPDATES)
    memory: Any = run.module.memory
    return {"predictions": memory.predictions[:-1], "visits": memory.visits[:-1]}


def probabilities(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def memory_of(num: int) -> dict[str, Tensor]:
    """Told by both processes of images that either of them owns, gathered, scattered, asked by both for all."""
    world, rank = processes()
    memory, told = PredictionMemory(num, 5), probabilities(num)
    own = torch.arange(num)[: num // 2 + 1] if rank == 0 else torch.arange(num)[num // 2 + 1 :]
    if world == 1:
        own = torch.arange(num)
    if not len(own):
        own = torch.tensor([0])  # a process with nothing repeats a key
    memory.remember(own, told[own])
    found = {"rows": torch.tensor(len(memory.predictions))}
    found["predictions"], found["visits"] = memory.recall(torch.arange(num))
    whole = memory.gather()
    found |= {f"whole.{key}": value for key, value in whole.items()}
    second = PredictionMemory(num, 5)
    second.scatter({"predictions": probabilities(num, seed=1).half(), "visits": torch.arange(num, dtype=torch.int32)})
    found["scattered.predictions"], found["scattered.visits"] = second.recall(torch.arange(num).flip(0)[: 1 + rank])
    return found


def means() -> dict[str, Tensor]:
    """The mean over rows of which the first process has three and the others one, and its gradient for a weight."""
    world, rank = processes()
    data = torch.arange(8.0).view(4, 2) ** 2
    own = data if world == 1 else (data[:3] if rank == 0 else data[3:])
    weight = torch.tensor([1.5, -2.0], requires_grad=True)
    mean = global_mean(own * weight, torch.arange(len(own)))
    # As the training loop does it: weighted by the share of the rows, averaged over the processes.
    (mean.square().sum() * len(own) * world / 4).backward()
    gradient = weight.grad
    assert gradient is not None
    if world > 1:
        torch.distributed.all_reduce(gradient)
        gradient /= world
    return {"mean": mean.detach(), "gradient": gradient, "rows": gather_rows(own)}


def resumed(checkpoint: Path) -> dict[str, Tensor]:
    """PS-KD from where somebody stopped to where `trained` ends."""
    run = make_run("pskd")
    run.load(checkpoint)
    run.train(UPDATES - STOP)
    return run.state()


def main(out: Path, checkpoint: Path, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index

    def keep(what: str, tensors: dict[str, Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{what}-{rank}.safetensors")

    keep("world", {"size": torch.tensor(accelerator.num_processes), "rank": torch.tensor(rank)})
    for kind, num_images in NUM_IMAGES.items():
        for name in METHODS:
            keep(f"{kind}-{name}", trained(name, num_images))
    keep("shards", shards_after_training())
    keep("means", means())
    for num in (1, 2, 7):
        keep(f"memory{num}", memory_of(num))
    run = make_run("pskd")
    run.train(STOP)
    run.save(out / "checkpoints")
    keep("resumed", resumed(checkpoint))
    # Batches of two on each, for four on one: another recipe, so it must be told to.
    forced = ["data.batch_size=2", "run.resume=force", f"run.output_dir={folder}"]
    sys.exit(train.main([str(folder / "recipe.yaml"), *forced]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
