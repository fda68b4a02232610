"""Several ranks training one network: the launch is right, they agree on the data, and a lost rank is named."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.distributed import DistError, TCPStore

from cskd_hf.data.loaders import count_workers
from cskd_hf.engine.cpu_tuning import join_ranks_on_cpus
from cskd_hf.engine.launch import (
    check_accelerator,
    check_environment,
    check_open_files,
    check_temporary_folder,
)
from cskd_hf.engine.trackers import check_trackers
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

# Variables in which launchers state how many processes they started, to detect ranks that would train alone.
_LAUNCHERS = {"SLURM_NTASKS": "srun", "OMPI_COMM_WORLD_SIZE": "mpirun", "PMI_SIZE": "mpiexec", "WORLD_SIZE": "torchrun"}


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Join the process group; misconfigured launches are rejected before any image is read.

    Raises:
        UserError: a setting of the launcher that the recipe does not record (see `engine/launch.py`), a process count
            other than `run.num_processes`, or a launcher that started several processes unaware of each other.
    """
    check_environment(recipe)
    check_trackers(recipe)
    check_temporary_folder()
    check_open_files(count_workers(recipe.data.workers))
    join_ranks_on_cpus()
    if recipe.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        mixed_precision=recipe.run.mixed_precision,
        log_with=list(recipe.run.report_to) or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.run.ddp_timeout))],
    )
    check_accelerator(accelerator)
    num_processes, expected = accelerator.num_processes, recipe.run.num_processes
    if expected is not None and expected != num_processes:
        raise UserError(
            f"run.num_processes: read {expected}, but this run has {num_processes}; start {expected} with torchrun "
            "--nproc_per_node, "
            "or accelerate launch --num_processes (which starts only one on CPUs)"
        )
    if num_processes == 1:
        for variable, launcher in _LAUNCHERS.items():
            started = os.environ.get(variable, "1")
            if started.isdigit() and int(started) > 1:
                raise UserError(
                    f"{launcher} started {started} processes ({variable}), but each of them would train alone; run "
                    "torchrun or accelerate launch once per machine"
                )
    return accelerator


def synchronize_batch_norm(module: nn.Module, accelerator: Accelerator) -> nn.Module:
    """BatchNorm over the images of all ranks, by timm's converter, which keeps the activations in its own norms.

    Raises:
        UserError: torch has no SyncBatchNorm for CPUs.
    """
    if accelerator.device.type != "cuda":
        raise UserError("run.sync_bn: SyncBatchNorm needs CUDA; write run.sync_bn=false")
    return convert_sync_batchnorm(module)


class Ranks:
    """Every rank's host and pid, and a roll call for when a collective has failed. Creating it is a collective.

    The roll call goes through a TCPStore of our own on rank 0: after a failed collective, torch's process group is
    unusable.

    Args:
        accelerator: already started.

    Attributes:
        names: by rank, "process 1 on HOST (pid 123)".
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.rank = accelerator.process_index
        self.names: list[str] = gather_object([f"process {self.rank} on {socket.gethostname()} (pid {os.getpid()})"])
        self.store: TCPStore | None = None
        if len(self.names) > 1:
            # The launcher's own store is on rank 0's host, too.
            host, port = os.environ.get("MASTER_ADDR", "localhost"), 0
            if self.rank == 0:
                self.store = _store(host, 0, is_master=True)
                port = self.store.port
            port = broadcast_object_list([port])[0]
            self.store = self.store or _store(host, port, is_master=False)
            self.address = (host, port)

    def missing(self, patience: float = 5.0) -> list[int]:
        """Ranks that do not answer the roll call. Every surviving rank calls it at about the same time.

        Args:
            patience: seconds the others have to answer.
        """
        assert self.store is not None
        deadline = time.monotonic() + patience
        absent = set(range(len(self.names)))
        try:
            # Connect first: for a lost server, the store's own client prints pages of stack frames.
            socket.create_connection(self.address, timeout=patience).close()
            self.store.set(f"here/{self.rank}", "")
            while absent and time.monotonic() < deadline:
                absent -= {rank for rank in absent if self.store.check([f"here/{rank}"])}
                time.sleep(0.1)
        except (DistError, OSError):
            return [0]  # the store died with rank 0
        if self.rank == 0:
            time.sleep(1.0)  # keep the store up for the last rank to connect
        return sorted(absent)

    def check_agreement(self, facts: Mapping[str, Any]) -> None:
        """Reject ranks that would train on different things. A collective.

        Args:
            facts: name -> value that must be equal on every rank, such as the recipe's hash.

        Raises:
            UserError: on every rank, naming the fact, its values and the ranks.
        """
        facts_by_rank = gather_object([dict(facts)])
        for fact in facts:
            ranks_by_value: dict[str, list[str]] = {}
            for name, rank_facts in zip(self.names, facts_by_rank, strict=True):
                ranks_by_value.setdefault(str(rank_facts[fact]), []).append(name)
            if len(ranks_by_value) > 1:
                values = "; ".join(f"{value}: {', '.join(names)}" for value, names in ranks_by_value.items())
                raise UserError(
                    f"the processes differ in {fact}: {values}; give every machine the same files and command"
                )


def _store(host: str, port: int, is_master: bool) -> TCPStore:
    return TCPStore(host, port, is_master=is_master, wait_for_workers=False, timeout=timedelta(seconds=60))
