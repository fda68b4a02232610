"""What must hold before several processes train one network: the right ones are there, and they mean the same."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list, gather_object
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.distributed import DistError, TCPStore

from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

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


class Peers:
    """Knows every process by rank, host and pid, and calls the roll when a collective has failed. A collective.

    The roll is called at a store of its own in process 0: torch's collectives cannot be asked anything once one of
    them has failed.

    Args:
        accelerator: its processes.

    Attributes:
        names: "process 1 on HOST (pid 123)", by rank.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank = accelerator.process_index
        self.names: list[str] = gather_object([f"process {self.rank} on {socket.gethostname()} (pid {os.getpid()})"])
        self.store: TCPStore | None = None
        if len(self.names) > 1:
            # Where the launcher's own store is, process 0 is.
            host, port = os.environ.get("MASTER_ADDR", "localhost"), 0
            if self.rank == 0:
                self.store = _store(host, 0, True)
                port = self.store.port
            port = broadcast_object_list([port])[0]
            self.store = self.store or _store(host, port, False)
            self.address = (host, port)

    def missing(self, patience: float = 5.0) -> list[int]:
        """Ranks that do not answer the roll. Every process that still lives calls it, at about the same time.

        Args:
            patience: seconds that the others have to answer.
        """
        assert self.store is not None
        end = time.monotonic() + patience
        absent = set(range(len(self.names)))
        try:
            # Asked first, because the store's own client tells of a lost server by pages of stack frames.
            socket.create_connection(self.address, timeout=patience).close()
            self.store.set(f"here/{self.rank}", "")
            while absent and time.monotonic() < end:
                absent -= {rank for rank in absent if self.store.check([f"here/{rank}"])}
                time.sleep(0.1)
        except (DistError, OSError):
            return [0]  # the store is in process 0, and gone with it
        if self.rank == 0:
            time.sleep(1.0)  # who asks last shall still find the store
        return sorted(absent)


def _store(host: str, port: int, is_master: bool) -> TCPStore:
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=60))


def is_broken_collective(error: BaseException) -> bool:
    """Whether a collective failed because of another process; gloo has no type of its own for that."""
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())
