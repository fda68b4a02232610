"""The ranks of test_methods_distributed.py: trains every method on any number of ranks.

    torchrun --nproc_per_node=2 two_ranks.py OUT CHECKPOINT RUN

Writes OUT/<name>-<rank>.safetensors. CHECKPOINT is a one-rank PS-KD checkpoint; RUN is the run folder of
a one-rank PS-KD run stopped within an epoch, which the real command finishes here.
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
from cskd_hf.models.collectives import global_mean, world_and_rank
from cskd_hf.models.memory import PredictionMemory

CLASSES = ("a", "b", "c")
GLOBAL_BATCH = 4
UPDATES, STOP = 9, 4  # six per epoch
# The last batch of an epoch has one image per rank, or (odd) none for rank 1.
NUM_IMAGES = {"even": 22, "odd": 21}
# One method of each kind: a single network, one with branches, a scale, a memory, a teacher.
HEADED = ("cskd", "byot", "adacos", "pskd", "distillation")
UNEQUAL: dict[str, Any] = {"logit_adjustment": 1.0, "class_weight_beta": 0.9}
FROZEN: dict[str, Any] = {"freeze": ("stem",), "freeze_epochs": 1}


def network() -> nn.Module:
    """GroupNorm and no dropout: an image's output does not depend on the rest of the batch."""
    return small_network(len(CLASSES), norm=lambda channels: nn.GroupNorm(1, channels))


def make_run(name: str, num_images: int = NUM_IMAGES["even"], **settings: Any) -> Run:
    world = Accelerator(cpu=True).num_processes
    return Run(
        method=method_of(name, CLASSES, **(UNEQUAL if name == "cross_entropy" else {})),
        network=network,
        num_images=num_images,
        batch_size=GLOBAL_BATCH // world,
        lr=0.05,
        num_epochs=2,
        double=True,
        **settings,
    )


def train_method(name: str, num_images: int = NUM_IMAGES["even"], **settings: Any) -> dict[str, Tensor]:
    run = make_run(name, num_images, **settings)
    run.train(UPDATES)
    return run.state()


def train_and_take_shard() -> dict[str, Tensor]:
    """This rank's shard of the memory after training under DDP."""
    run = make_run("pskd")
    run.train(UPDATES)
    memory: Any = run.module.memory
    return {"predictions": memory.predictions[:-1], "visits": memory.visits[:-1]}


def probabilities(num: int, seed: int = 0) -> Tensor:
    return torch.randn(num, 5, generator=torch.Generator().manual_seed(seed)).softmax(dim=-1)


def exercise_memory(num: int) -> dict[str, Tensor]:
    """Both ranks write images that either may own; then gather, scatter, and read all images on both."""
    world, rank = world_and_rank()
    memory, predictions = PredictionMemory(num, 5), probabilities(num)
    own = torch.arange(num)[: num // 2 + 1] if rank == 0 else torch.arange(num)[num // 2 + 1 :]
    if world == 1:
        own = torch.arange(num)
    if not len(own):
        own = torch.tensor([0])  # a rank without a share repeats an image
    memory.remember(own, predictions[own])
    result = {"rows": torch.tensor(len(memory.predictions))}
    result["predictions"], result["visits"] = memory.recall(torch.arange(num))
    result |= {f"gathered.{key}": value for key, value in memory.gather().items()}
    other = PredictionMemory(num, 5)
    other.scatter({"predictions": probabilities(num, seed=1).half(), "visits": torch.arange(num, dtype=torch.int32)})
    requested = torch.arange(num).flip(0)[: 1 + rank]
    result["scattered.predictions"], result["scattered.visits"] = other.recall(requested)
    return result


def mean_and_gradient() -> dict[str, Tensor]:
    """`global_mean` of four rows, three on rank 0 and one on rank 1, and its gradient for a weight."""
    world, rank = world_and_rank()
    rows = torch.arange(8.0).view(4, 2) ** 2
    own = rows if world == 1 else (rows[:3] if rank == 0 else rows[3:])
    weight = torch.tensor([1.5, -2.0], requires_grad=True)
    mean = global_mean(own * weight, torch.arange(len(own)))
    # As in the training loop: weighted by the rank's share of the rows, averaged over ranks.
    (mean.square().sum() * len(own) * world / 4).backward()
    gradient = weight.grad
    assert gradient is not None
    if world > 1:
        torch.distributed.all_reduce(gradient)
        gradient /= world
    return {"mean": mean.detach(), "gradient": gradient}


def resume_training(checkpoint: Path) -> dict[str, Tensor]:
    """PS-KD from `checkpoint` to the last update of `train_method`."""
    run = make_run("pskd")
    run.load(checkpoint)
    run.train(UPDATES - STOP)
    return run.state()


def main(out: Path, checkpoint: Path, folder: Path) -> None:
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index

    def save(name: str, tensors: dict[str, Tensor]) -> None:
        save_file({key: value.contiguous() for key, value in tensors.items()}, out / f"{name}-{rank}.safetensors")

    save("world", {"size": torch.tensor(accelerator.num_processes), "rank": torch.tensor(rank)})
    for kind, num_images in NUM_IMAGES.items():
        for name in METHODS:
            save(f"{kind}-{name}", train_method(name, num_images))
    for name in HEADED:
        save(f"frozen-{name}", train_method(name, **FROZEN))
    save("shard", train_and_take_shard())
    save("mean", mean_and_gradient())
    for num in (1, 2, 7):
        save(f"memory{num}", exercise_memory(num))
    run = make_run("pskd")
    run.train(STOP)
    run.save(out / "checkpoints")
    save("resumed", resume_training(checkpoint))
    # The batch size per rank changes: another recipe, which resuming rejects unless forced.
    forced = ["data.batch_size=2", "run.resume=force", f"run.output_dir={folder}"]
    sys.exit(train.main([str(folder / "recipe.yaml"), *forced]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
