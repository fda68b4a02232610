"""Time and memory of one training step: cross-entropy, CS-KD and mutual CS-KD, eager and compiled.

    python scripts/bench/step.py                                  # ResNet-18 at 64 px on the CPU
    python scripts/bench/step.py --device cuda --model resnet50 --size 224 --batch 128 --classes 1000 --precision bf16

A step is what training does with a loaded batch: normalise the uint8 images, forward, backward, update. Each repeat
runs every variant once in random order; ratios compare times of one repeat. B is the number of supervised images of a
cross-entropy or CS-KD step; mutual CS-KD supervises 2B and is compared with cross-entropy at 2B.

Memory is what the forward saves for the backward (CPU), or the peak allocation of a step (CUDA).
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import timm
import torch
from reporting import alternate, bench_parser, ratios, report, seconds, spread, table
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

import cskd_hf.models  # noqa: F401  (registers)
from cskd_hf.batch import Batch
from cskd_hf.engine.objective import Objective
from cskd_hf.engine.optimizer import create_optimizer
from cskd_hf.methods import CSKD, CrossEntropy, Method, MutualCSKD
from cskd_hf.models.layers import restore_running_statistics
from cskd_hf.recipe.sections import OptimizerSection

# Method, pairs, supervised images in units of B, activation checkpointing.
VARIANTS: dict[str, tuple[Method, bool, int, bool]] = {
    "cross-entropy, B": (CrossEntropy(), False, 1, False),
    "cross-entropy, 2B": (CrossEntropy(), False, 2, False),
    "CS-KD, B": (CSKD(), True, 1, False),
    "CS-KD anchors_only, B": (CSKD(batch_norm="anchors_only"), True, 1, False),
    "mutual CS-KD, 2B": (MutualCSKD(), True, 2, False),
    "CS-KD, B, checkpointed": (CSKD(), True, 1, True),
}
RATIOS = {
    "CS-KD / cross-entropy": ("CS-KD, B", "cross-entropy, B"),
    "CS-KD anchors_only / CS-KD": ("CS-KD anchors_only, B", "CS-KD, B"),
    "mutual / cross-entropy at 2B": ("mutual CS-KD, 2B", "cross-entropy, 2B"),
    "CS-KD checkpointed / CS-KD": ("CS-KD, B, checkpointed", "CS-KD, B"),
}
# Compiling takes half a minute each on a CPU: only the variants whose ratios have a target.
COMPILED = ("cross-entropy, B", "cross-entropy, 2B", "CS-KD, B", "mutual CS-KD, 2B")
MODES = ("eager", "compiled", "reduce-overhead")
PRECISIONS = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}
UPDATES = {"a loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def variant(name: str, args: argparse.Namespace, mode: str) -> Callable[[int], float]:
    """A function that runs some steps of a new network and returns the mean seconds of one."""
    method, pairs, share, checkpointed = VARIANTS[name]
    torch.manual_seed(0)
    model: Any = timm.create_model(args.model, num_classes=args.classes)
    model.set_grad_checkpointing(checkpointed)
    objective = Objective(method, model, (0.5,) * 3, (0.25,) * 3, channels_last=True)
    objective.to(args.device).to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer(OptimizerSection(lr=0.1, weight_decay=1e-4), model, model, 0.01)
    num_images = args.batch * (2 if pairs else share)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (num_images, 3, args.size, args.size), dtype=torch.uint8, generator=generator)
    images = images.to(args.device, memory_format=torch.channels_last)
    target = torch.randint(args.classes, (num_images,), generator=generator)
    target = (target[: num_images // 2].repeat(2) if pairs else target).to(args.device)
    batch = Batch(images, target, target)
    if mode != "eager":
        objective.compile(mode=None if mode == "compiled" else mode, dynamic=False)
    precision = PRECISIONS[args.precision]
    scaler = torch.amp.GradScaler(args.device, enabled=args.precision == "fp16")

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(args.device, precision, enabled=precision is not None):
                loss = objective(batch)["loss"]
            with restore_running_statistics(model) if checkpointed else nullcontext():
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        if args.device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    return run


def memory_and_flops(name: str, args: argparse.Namespace) -> tuple[int, int]:
    """Memory of one step, as defined above, of a network alone on the device; and its floating-point operations."""
    before = torch.cuda.memory_allocated() if args.device == "cuda" else 0
    step = variant(name, args, "eager")
    with FlopCounterMode(display=False) as counter:
        step(1)  # also allocates the optimizer's state
    flops = counter.get_total_flops()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step(1)
        return torch.cuda.max_memory_allocated() - before, flops
    saved: dict[int, int] = {}  # bytes by address: several tensors may share a storage

    def record(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(record, lambda tensor: tensor):
        step(1)
    return sum(saved.values()), flops


def measure(names: Sequence[str], args: argparse.Namespace, mode: str) -> dict[str, list[float]]:
    """Mean seconds of a step in each repeat, by variant; without the first steps, which compile and choose kernels."""
    steps = {name: variant(name, args, mode) for name in names}
    for step in steps.values():
        step(3)
    return alternate({name: partial(step, args.steps) for name, step in steps.items()}, args.repeats)


def update_seconds(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of the update alone, with each of torch's implementations."""
    torch.manual_seed(0)
    network = timm.create_model(args.model, num_classes=args.classes)
    optimizers = {}
    for opt in ("momentum", "adamw"):
        for implementation, keywords in UPDATES.items():
            model = copy.deepcopy(network).to(args.device)
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, 1e-3)
            optimizer = timm.optim.create_optimizer_v2(model, opt=opt, lr=1e-3, weight_decay=1e-4, **keywords)
            optimizer.step()  # allocates its state
            optimizers[f"{opt}, {implementation}"] = optimizer

    def update(optimizer: torch.optim.Optimizer) -> None:
        optimizer.step()
        if args.device == "cuda":
            torch.cuda.synchronize()

    updates = {name: partial(seconds, partial(update, optimizer)) for name, optimizer in optimizers.items()}
    return alternate(updates, args.repeats)


def main(argv: Sequence[str] | None = None) -> None:
    parser = bench_parser(__doc__, repeats=9)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32, help="B")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--precision", choices=list(PRECISIONS), default="no")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager", "compiled"])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=2, help="steps per repeat")
    parser.add_argument("--quick", action="store_true", help="eager only, few repeats")
    args = parser.parse_args(argv)
    if args.quick:
        args.modes, args.repeats, args.steps = ["eager"], min(args.repeats, 5), 1

    tables: list[str] = []
    figures: dict[str, Any] = {}
    for mode in args.modes:
        names = [name for name in args.variants if mode == "eager" or name in COMPILED]
        costs = {name: memory_and_flops(name, args) for name in names} if mode == args.modes[0] else {}
        memory, flops = ({name: cost[i] for name, cost in costs.items()} for i in (0, 1))
        times = measure(names, args, mode)
        tables += [f"## {mode}", *mode_tables(times, memory, args.batch)]
        figures[mode] = {"seconds": times, "bytes": memory, "flops": flops, "ratios": step_ratios(times)}
    if "eager" in args.modes:
        updates = update_seconds(args)
        rows = [(name, spread(times, 2, 1e3)) for name, times in updates.items()]
        tables += ["## The update alone", table(("", "ms"), rows)]
        figures["update"] = {"seconds": updates}
    where = f"{args.device}, {args.model}, {args.size} px, B = {args.batch}, mixed precision: {args.precision}"
    report(f"A step: {where}; n = {args.repeats} x {args.steps}", "step", tables, figures, args.output)


def step_ratios(times: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: ratios(times[a], times[b]) for name, (a, b) in RATIOS.items() if a in times and b in times}


def mode_tables(times: dict[str, list[float]], memory: dict[str, int], batch: int) -> list[str]:
    rows = [
        (
            name,
            spread(own, 1, 1e3),
            f"{batch * VARIANTS[name][2] / statistics.median(own):,.0f}",
            f"{memory[name] / 2**20:,.1f}" if memory else "",
        )
        for name, own in times.items()
    ]
    compared = [(name, spread(values, 3)) for name, values in step_ratios(times).items()]
    return [
        table(("step", "ms", "supervised images/s", "MiB"), rows),
        table(("within a repeat, per supervised image", "ratio"), compared),
    ]


if __name__ == "__main__":
    main()
