"""Exactness on the device: gradients, resume, determinism, a whole training; and error messages."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from harness import ROOT, Bench
from torch._dynamo.utils import counters

from cskd_hf.batch import Batch
from cskd_hf.data.batches import GlobalBatches
from cskd_hf.data.sampling import ClassPairSampler
from cskd_hf.engine.build import build_objective
from cskd_hf.engine.learner import build_learner
from cskd_hf.engine.scalars import Totals
from cskd_hf.engine.updates import forward_backward
from cskd_hf.methods.base import Experiment
from cskd_hf.recipe.recipe import load_recipe

# Mean and standard deviation of the top-1 error on the CPU, n = 5: recipes/RESULTS.md.
DIGITS_ON_CPU = {"cross_entropy": (3.16, 0.74), "cskd": (1.99, 0.36)}


def gpu_tests(bench: Bench) -> None:
    if bench.device == "cpu":
        bench.add("pytest -m gpu", "passed", "needs a GPU", None)
        return
    options = "-q -n 0 -m gpu tests/test_gpu.py -p no:cacheprovider"
    command_line = [sys.executable, "-m", "pytest", *options.split()]
    done = subprocess.run(command_line, cwd=ROOT, env=bench.environment(), text=True, capture_output=True)
    print(done.stdout[-30_000:], done.stderr[-5_000:])
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped)[^=]*", done.stdout)
    failed = [line.removeprefix("FAILED ")[:150] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    found = "; ".join([summary[-1].strip() if summary else f"exit status {done.returncode}", *failed])
    bench.add("pytest -m gpu", "passed", found, done.returncode == 0)


def accumulation(bench: Bench) -> None:
    """Two accumulated micro-batches under every compile mode give the eager gradient; a short batch recompiles once."""
    torch.backends.cudnn.allow_tf32 = False  # its rounding flips ReLUs, which changes gradients by a few percent
    expected = gradients(bench, "false")
    modes = () if bench.quick else ("default", "reduce-overhead") if bench.device == "cuda" else ("default",)
    for mode in modes:
        torch.compiler.reset()
        counters.clear()
        difference = relative_difference(gradients(bench, mode), expected)
        bench.add(f"gradients, {mode} / eager", "relative difference ≤ 0.001", f"{difference:.2g}", difference <= 1e-3)
        graphs = counters["stats"]["unique_graphs"]
        bench.add(f"graphs of the objective, {mode}", "2, one for the short batch", str(graphs), graphs == 2)


def gradients(bench: Bench, compile_mode: str) -> dict[str, torch.Tensor]:
    """Name → gradient of CS-KD after two rounds of two full micro-batches and a short one."""
    recipe = load_recipe(
        "digits_resnet10",
        ["model={model_name: test_resnet}", f"run.compile={compile_mode}", "run.gradient_accumulation_steps=3"],
    )
    accelerator = Accelerator(cpu=bench.device == "cpu")
    torch.manual_seed(0)
    experiment = Experiment(96, 1, tuple("0123456789"), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    batches = GlobalBatches(ClassPairSampler(np.arange(120) % 10), 48)
    learner = build_learner(recipe, build_objective(recipe, experiment), batches, accelerator)
    totals = Totals(accelerator.device, {})
    for round_ in range(2):
        learner.optimizer.zero_grad(set_to_none=learner.set_to_none)
        for number, size in enumerate((48, 48, 24)):
            generator = torch.Generator().manual_seed(10 * round_ + number)
            images = torch.randint(256, (2 * size, 32, 32, 3), dtype=torch.uint8, generator=generator)
            index = torch.arange(size).repeat(2)
            forward_backward(
                learner.objective,
                Batch(images.permute(0, 3, 1, 2), index % 10, index),
                accelerator,
                totals,
                recipe.run,
                num_samples=size,
                group_samples=120,
                all_reduce=number == 2,
                step=0,
            )
    named = learner.module.named_parameters()
    return {name: parameter.grad.cpu().clone() for name, parameter in named if parameter.grad is not None}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model" / "model.safetensors")


def relative_difference(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """‖ours − expected‖ / ‖expected‖ over all floating-point tensors."""
    names = [name for name, value in expected.items() if value.is_floating_point()]
    error = sum(float((ours[name].double() - expected[name].double()).square().sum()) for name in names)
    size = sum(float(expected[name].double().square().sum()) for name in names)
    return (error / size) ** 0.5


def resume_fp16(bench: Bench) -> None:
    """fp16 with a loss scale: a killed and resumed run has the weights and the scaler of an uninterrupted one."""
    # On CPUs, torch's bf16 gradients of a 3×3 convolution of 1×1 pixels, the digits' last ones, are undefined.
    precision = "fp16" if bench.device == "cuda" else "no"
    overrides = [f"run.mixed_precision={precision}", "run.deterministic=true"]
    bench.train(*bench.digits("whole", *overrides))
    arguments = bench.digits("killed", *overrides)
    with killed_after_checkpoint(bench, arguments) as killed:
        bench.add("killed by SIGKILL after a checkpoint", "", str(killed), None)
    bench.train(*arguments)
    equal_runs(bench, "whole", "killed", True)


def equal_runs(bench: Bench, one: str, two: str, required: bool) -> None:
    """Bit-equality of the final weights and, in fp16, of the loss scaler."""
    first, second = (weights(bench.folder / name) for name in (one, two))
    different = [name for name in first if not torch.equal(first[name], second[name])]
    found = "bit-equal" if not different else f"{len(different)} of {len(first)} tensors differ"
    bench.add(f"weights, {one} and {two}", "bit-equal" if required else "", found, not different if required else None)
    scalers = []
    for name in (one, two):
        newest = sorted((bench.folder / name / "checkpoints").glob("step-*"))[-1]
        scalers.append(torch.load(newest / "optimizer.pt", weights_only=True, map_location="cpu")["scaler"])
    if scalers[0] is not None:
        bench.add(f"loss scaler, {one} and {two}", "equal", f"{scalers[0]['scale']:g}", scalers[0] == scalers[1])


@contextmanager
def killed_after_checkpoint(bench: Bench, arguments: list[str]) -> Iterator[bool]:
    """Start a run and kill it with SIGKILL as soon as its first checkpoint is complete."""
    folder = Path(arguments[-1].partition("=")[2]) / "checkpoints"
    process = subprocess.Popen(
        [sys.executable, "-m", "cskd_hf.train", *arguments], env=bench.environment(), start_new_session=True
    )
    while process.poll() is None and not list(folder.glob("step-*")):
        time.sleep(0.02)
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    yield alive


def deterministic(bench: Bench) -> None:
    """Two whole runs, with and without `run.deterministic`."""
    for setting in ("true",) if bench.quick else ("true", "false"):
        for name in ("a", "b"):
            bench.train(*bench.digits(f"{setting}-{name}", f"run.deterministic={setting}"))
        equal_runs(bench, f"{setting}-a", f"{setting}-b", required=setting == "true")


def digits(bench: Bench) -> None:
    """A real training to its end, mean over seeds, against the CPU's result."""
    seeds = range(1) if bench.quick else range(3)
    for method, (mean, std) in DIGITS_ON_CPU.items():
        overrides = ["scheduler.num_epochs=1"] if bench.quick else []
        running = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "cskd_hf.train", "digits_resnet10", f"method={{name: {method}}}"),
                    *(f"run.seed={seed}", f"run.output_dir={bench.folder / f'{method}-{seed}'}", "data.workers=2"),
                    *overrides,
                ],
                env=bench.environment(),
            )
            for seed in seeds
        ]
        for process in running:
            if process.wait():
                raise RuntimeError(f"{method}: exit status {process.returncode}")
        errors = []
        for seed in seeds:
            summary = json.loads((bench.folder / f"{method}-{seed}" / "summary.json").read_text(encoding="utf-8"))
            errors.append(summary["metrics"]["last"]["top1_error"])
        found = statistics.fmean(errors)
        allowed = 3 * std * (1 / 5 + 1 / len(errors)) ** 0.5
        values = ", ".join(f"{error:.2f}" for error in errors)
        good = None if bench.quick else abs(found - mean) <= allowed
        bench.add(f"{method}, top-1 error", f"{mean} ± {allowed:.2f} % (CPU, n = 5)", f"{found:.2f} % ({values})", good)


def out_of_memory(bench: Bench) -> None:
    """A step that does not fit ends in one line with a batch size that does."""
    if bench.device == "cpu":
        bench.add("message", "one line", "needs a GPU", None)
        return
    arguments = [
        *("digits_resnet10", "model={model_name: resnet50}", "transform.input_size=[3, 512, 512]"),
        *("data={dataset: digits, batch_size: 150, workers: 8}", f"run.output_dir={bench.folder / 'run'}"),
        *("run.mixed_precision=bf16", "scheduler.num_epochs=1"),
    ]
    # A tenth of the card, so that any runs out of memory and leaves the rest to the other checks. The dry run, of the
    # epoch's last 50 samples, fits.
    limit = {"PYTORCH_CUDA_ALLOC_CONF": "per_process_memory_fraction:0.1"}
    done = bench.train(*arguments, check=False, **limit)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    advice = re.search(r"(data\.batch_size=\d+) (run\.gradient_accumulation_steps=\d+)", " ".join(lines))
    good = done.returncode == 1 and len(lines) == 1 and advice is not None
    bench.add("message", "one line with a batch size that fits", " / ".join(lines)[:400] or "none", good)
    if advice is not None:
        status = bench.train(*arguments, *advice.groups(), check=False, **limit).returncode
        bench.add("its advice, followed", "trains", f"exit status {status}", status == 0)


def two_ranks(bench: Bench) -> None:
    """Two ranks train on a CPU or on two GPUs; on one GPU they are rejected."""
    command_line = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "cskd_hf.train"),
        *bench.digits("run", "run.ddp_timeout=60"),
    ]
    variables = {"ACCELERATE_USE_CPU": "true"} if bench.device == "cpu" else {}
    started = time.monotonic()
    done = subprocess.run(command_line, env=bench.environment(**variables), text=True, capture_output=True)
    print(done.stdout[-5_000:], done.stderr[-20_000:])
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    found = f"exit status {done.returncode} after {time.monotonic() - started:.0f} s"
    if bench.device == "cuda" and torch.cuda.device_count() == 1:
        found += f": {errors[0][:200]}" if errors else ""
        bench.add("two ranks on one GPU", "one line", found, len(errors) == 1)
    else:
        bench.add("two ranks", "exit status 0", found, done.returncode == 0)
