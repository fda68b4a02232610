"""Settings that reach Accelerate through the environment and bypass the recipe: each is rejected or recorded."""

from __future__ import annotations

import os
import resource
import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend

from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe

_SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# Strategies for models that do not fit a device; Accelerate ignores them in silence where it sees no GPU.
_STRATEGIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "SAGEMAKER")


def check_environment(recipe: Recipe) -> None:
    """Reject what a launcher, its configuration file or the shell asks for that no recipe key records.

    `accelerate launch` turns its options and its configuration file into these variables.

    Raises:
        UserError: the variable, what it holds, and the recipe's key for it.
    """
    for strategy in _STRATEGIES:
        if os.environ.get(f"ACCELERATE_USE_{strategy}", "false").lower() in ("true", "1", "yes", "on", "y", "t"):
            raise UserError(
                f"accelerate: ACCELERATE_USE_{strategy} is set, but this loop evaluates, averages and saves whole "
                "weights on every rank; unset it, or choose MULTI_GPU in accelerate config, one process per GPU"
            )
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise UserError(
            f"accelerate: ACCELERATE_GRADIENT_ACCUMULATION_STEPS is {steps}; unset it and write "
            "run.gradient_accumulation_steps"
        )
    if "ACCELERATE_TORCH_DEVICE" in os.environ:  # streams and events would be of the default device
        raise UserError(
            f"accelerate: ACCELERATE_TORCH_DEVICE is {os.environ['ACCELERATE_TORCH_DEVICE']}; unset it and choose a "
            "GPU with CUDA_VISIBLE_DEVICES, or the CPU with ACCELERATE_USE_CPU=true"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise UserError(
            f"accelerate: ACCELERATE_DYNAMO_BACKEND is {backend}; unset it, launch without --dynamo_backend, and write "
            "run.compile=true"
        )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if recipe.run.mixed_precision is None and precision not in ("no", "bf16", "fp16"):
        raise UserError(f"accelerate: ACCELERATE_MIXED_PRECISION is {precision}; no, bf16 and fp16 are supported")


def check_temporary_folder() -> None:
    """Loader workers and figures need one; without it a run would fail after its last epoch.

    Raises:
        UserError: none of the usual places can be written.
    """
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise UserError(
            f"no folder for temporary files ({error}); set TMPDIR to a folder that can be written"
        ) from None


def check_open_files(workers: int) -> None:
    """Raise the soft limit of open files as far as allowed: torch's loader does not survive reaching it.

    Args:
        workers: loader processes, each with pipes and shared memory, in training and in evaluation.

    Raises:
        UserError: the hard limit is too low.
    """
    needed = 64 + 16 * workers  # twice what a small run opened [ours]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in (soft, hard) and max(soft, hard) < needed:
        raise UserError(
            f"the limit of open files is {hard}, and {workers} loader workers need {needed}; raise it (ulimit -n 4096) "
            "or lower data.workers"
        )
    if soft != resource.RLIM_INFINITY and soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096 if hard == resource.RLIM_INFINITY else min(4096, hard), hard))


def check_accelerator(accelerator: Accelerator) -> None:
    """Check that Accelerate runs what the recipe records, wherever its settings came from.

    Raises:
        UserError: a strategy that this loop does not support, accumulation or compilation by Accelerate, fp16 on a CPU,
            fewer GPUs than processes.
    """
    if accelerator.distributed_type not in _SUPPORTED:
        raise UserError(
            f"accelerate: distributed_type {accelerator.distributed_type.value}: this loop evaluates, averages and "
            "saves whole weights on every rank; use MULTI_GPU, one process per GPU"
        )
    # In a single process, the variable is left over from another launch.
    local = min(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), accelerator.num_processes)
    devices = torch.cuda.device_count()
    own_device = devices == 1 and "CUDA_VISIBLE_DEVICES" in os.environ  # as Slurm may give one to each task
    if accelerator.device.type == "cuda" and local > devices and not own_device:
        raise UserError(
            f"this machine has {local} processes, and GPUs for {devices}: NCCL needs one each; start {devices}"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError(
            "run.mixed_precision: read fp16, but on a CPU Accelerate would train in float32; write "
            "run.mixed_precision=no or bf16"
        )
    if accelerator.gradient_accumulation_steps != 1:
        raise UserError("accelerate: it accumulates gradients by itself; write run.gradient_accumulation_steps instead")
    if accelerator.state.dynamo_plugin.backend != DynamoBackend.NO:
        raise UserError("accelerate: it compiles by itself; write run.compile=true instead")
