"""What must hold before several processes train one network: the right ones are there, and they mean the same."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from timm.layers import convert_sync_batchnorm
from torch import nn

from cskd_hf.data.load import ImageSplit
from cskd_hf.engine.peers import Peers
from cskd_hf.errors import UserError
from cskd_hf.recipe import Recipe

_TRAINED_WITH = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# How many processes a launcher started, where it says so, for a process that found no others.
_LAUNCHERS = {"SLURM_NTASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "WORLD_SIZE": "torchrun"}


def check_processes(accelerator: Accelerator, recipe: Recipe) -> None:
    """Refuse what cannot be right, before any image is read.

    Raises:
        UserError: a strategy that this loop does not train with; another number of processes than the recipe asks for;
            a launcher started several processes that know nothing of each other.
    """
    if accelerator.distributed_type not in _TRAINED_WITH:
        raise UserError(
            f"accelerate: distributed_type {accelerator.distributed_type.value}: CS-KD's two forwards need whole "
            "weights and BatchNorm statistics on every process; use MULTI_GPU, one process a GPU"
        )
    found, asked = accelerator.num_processes, recipe.run.num_processes
    if asked is not None and asked != found:
        raise UserError(
            f"run.num_processes: read {asked}, but {found} found; start {asked} with torchrun --nproc_per_node, or "
            "accelerate launch --num_processes (which starts one on CPUs, whatever it is told)"
        )
    if found == 1:
        for variable, launcher in _LAUNCHERS.items():
            started = os.environ.get(variable, "1")
            if started.isdigit() and int(started) > 1:
                raise UserError(
                    f"{launcher} started {started} processes ({variable}), but each of them would train alone: start "
                    "torchrun or accelerate launch, once a machine"
                )


def fingerprint(split: ImageSplit) -> str:
    """16 hexadecimal digits over a split's size, labels and class names, and the rows it holds."""
    digest = hashlib.sha256(json.dumps([split.name, list(split.class_names)]).encode())
    for array in (split.labels, split.rows):
        digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def check_agreement(peers: Peers, facts: Mapping[str, Any]) -> None:
    """Refuse processes that would train on different things; a collective.

    Args:
        facts: name → what must be the same everywhere; the recipe's hash, a split's fingerprint.

    Raises:
        UserError: in every process, naming the fact, the values and where they were found.
    """
    gathered = gather_object([dict(facts)])
    for name in facts:
        held: dict[str, list[str]] = {}
        for process, theirs in zip(peers.names, gathered, strict=True):
            held.setdefault(str(theirs[name]), []).append(process)
        if len(held) > 1:
            told = "; ".join(f"{value}: {', '.join(who)}" for value, who in held.items())
            raise UserError(f"the processes differ in {name}: {told}; give every machine the same files and command")


def synchronise_batch_norm(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """BatchNorm over the images of all processes; timm's converter, which keeps the activations of its own norms.

    Raises:
        UserError: torch has no such BatchNorm for CPUs.
    """
    if accelerator.device.type != "cuda":
        raise UserError("run.sync_bn: torch synchronises BatchNorm on CUDA only; write run.sync_bn=false")
    return convert_sync_batchnorm(module)
