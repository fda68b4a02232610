"""Settings of the launcher and of the shell are rejected or recorded."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, DynamoBackend
from summaries import make_recipe

from cskd_hf.engine.launch import (
    check_accelerator,
    check_environment,
    check_open_files,
    check_temporary_folder,
)
from cskd_hf.errors import UserError


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", r"4; .* write run\.gradient_accumulation_steps$"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto", r"auto; .* write run\.gradient_accumulation_steps$"),
        ("ACCELERATE_TORCH_DEVICE", "cuda:1", r"cuda:1; unset it and choose a GPU with CUDA_VISIBLE_DEVICES"),
        ("ACCELERATE_DYNAMO_BACKEND", "EAGER", r"EAGER; .* write run\.compile=true"),
        ("ACCELERATE_MIXED_PRECISION", "fp8", "fp8; no, bf16 and fp16 are supported"),
        ("ACCELERATE_USE_FSDP", "true", "whole weights"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "whole weights"),
        ("ACCELERATE_USE_MEGATRON_LM", "1", "whole weights"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "True", "whole weights"),
    ],
)
def test_a_setting_that_the_recipe_would_not_record_is_rejected(tmp_path, monkeypatch, variable, value, advice):
    check_environment(make_recipe(tmp_path))
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"{variable} is .*{advice}"):
        check_environment(make_recipe(tmp_path))


def test_what_accelerate_launch_sets_by_itself_is_allowed(tmp_path, monkeypatch):
    for name, value in {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_DYNAMO_BACKEND": "no",
        "ACCELERATE_DYNAMO_MODE": "default",
        "ACCELERATE_USE_FSDP": "false",
    }.items():
        monkeypatch.setenv(name, value)
    check_environment(make_recipe(tmp_path))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps"),
        ({"dynamo_backend": "eager"}, r"run\.compile"),
        (
            {"mixed_precision": "fp16"},
            r"^run\.mixed_precision: read fp16, but on a CPU .* float32; write .*=no or bf16",
        ),
    ],
)
def test_an_accelerator_that_does_more_than_the_recipe_says_is_rejected(settings, key):
    AcceleratorState._reset_state()
    try:
        with pytest.raises(UserError, match=key):
            check_accelerator(Accelerator(cpu=True, **settings))
    finally:
        AcceleratorState._reset_state()
        for variable in [name for name in os.environ if name.startswith("ACCELERATE_DYNAMO_")]:
            del os.environ[variable]


def test_more_processes_than_gpus_are_rejected(monkeypatch):
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.MULTI_GPU,
        device=torch.device("cuda", 1),
        mixed_precision="no",
        gradient_accumulation_steps=1,
        state=SimpleNamespace(dynamo_plugin=SimpleNamespace(backend=DynamoBackend.NO)),
    )
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    accelerator.num_processes = 1  # the variable is of another launch
    check_accelerator(accelerator)
    accelerator.num_processes = 16
    with pytest.raises(UserError, match=r"^this machine has 8 processes, and GPUs for 4: .* one each; start 4$"):
        check_accelerator(accelerator)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # each process sees its own
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    check_accelerator(accelerator)


def test_the_soft_limit_of_open_files_is_raised_and_a_low_hard_one_rejected(monkeypatch):
    limits = {"now": (32, 200)}
    monkeypatch.setattr("resource.getrlimit", lambda _: limits["now"])
    monkeypatch.setattr("resource.setrlimit", lambda _, pair: limits.update(now=pair))
    check_open_files(workers=4)
    assert limits["now"] == (200, 200)
    with pytest.raises(UserError, match=r"open files is 200, and 16 .* need 320; raise it \(ulimit -n 4096\)"):
        check_open_files(workers=16)


def test_without_a_temporary_folder_tmpdir_is_named(monkeypatch):
    check_temporary_folder()

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr("tempfile.gettempdir", nowhere)
    with pytest.raises(UserError, match="set TMPDIR to"):
        check_temporary_folder()
