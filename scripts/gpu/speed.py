"""Speed and memory of a training step, and of the real command on JPEGs."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Bench

from cskd_hf.runs.folder import read_metrics

# Targets on one H100: see scripts/bench/README.md.
MIN_RATE, MAX_CSKD, MAX_MUTUAL, MAX_MEMORY, MIN_LOADER_SHARE = 2800, 1.34, 1.02, 1.14, 0.9
VARIANTS = ("cross-entropy, B", "CS-KD, B", "cross-entropy, 2B", "mutual CS-KD, 2B")


def versions(bench: Bench) -> None:
    """The versions and hardware behind the figures."""
    names = ("torch", "torchvision", "timm", "accelerate", "datasets", "huggingface_hub", "pydantic", "safetensors")
    installed = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    bench.add("packages", "", f"Python {sys.version.split()[0]}, {installed}", None)
    shm = shutil.disk_usage("/dev/shm").total / 2**30
    bench.add("host", "", f"{os.cpu_count()} cores, /dev/shm {shm:.1f} GiB", None)
    if bench.device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        card = subprocess.run(query, text=True, capture_output=True, check=True).stdout.strip()
        bench.add("device", "", f"{card}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}", None)
    bench.add("matmul ceiling", "", f"{matmul_ceiling(bench) / 1e12:.3g} TFLOP/s in bf16", None)


def matmul_ceiling(bench: Bench) -> float:
    """Floating-point operations per second of a large bf16 matrix product; measured once, then read."""
    path = bench.work / "ceiling.json"
    if not path.is_file():
        size = 256 if bench.quick else 8192
        a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
        seconds = []
        for _ in range(13):
            synchronize(bench)
            started = time.perf_counter()
            a @ b
            synchronize(bench)
            seconds.append(time.perf_counter() - started)
        path.write_text(json.dumps(2 * size**3 / statistics.median(seconds[3:])), encoding="utf-8")
    return float(json.loads(path.read_text(encoding="utf-8")))


def synchronize(bench: Bench) -> None:
    if bench.device == "cuda":
        torch.cuda.synchronize()


def step_eager(bench: Bench) -> None:
    """ResNet-50 at 224 px, bf16, channels_last, B = 128: time, memory, utilisation."""
    figures = step(bench, "eager")
    memory = figures["bytes"]
    ratio = memory["CS-KD, B"] / memory["cross-entropy, B"]
    for name in VARIANTS:
        bench.add(f"peak memory, {name}", "", f"{memory[name] / 2**30:.2f} GiB", None)
    # The partner's forward keeps no activations: what is left is its 128 images, its logits and one layer's output.
    bench.bound("memory, CS-KD / cross-entropy", f"≤ {MAX_MEMORY}", ratio, ratio <= MAX_MEMORY)


def step_compiled(bench: Bench) -> None:
    if bench.quick:  # a minute of C++ compilation for each variant
        return
    figures = step(bench, "compiled", VARIANTS[:2])
    rate = 128 / statistics.median(figures["seconds"]["cross-entropy, B"])
    bench.bound("cross-entropy", f"≥ {MIN_RATE:,} images/s on an H100", rate, rate >= MIN_RATE, " images/s")


def step_compiled_pairs(bench: Bench) -> None:
    if not bench.quick:
        step(bench, "compiled", VARIANTS[2:])


def step_reduce_overhead(bench: Bench) -> None:
    if bench.device == "cuda":
        step(bench, "reduce-overhead", VARIANTS[:2])


def step(bench: Bench, mode: str, variants: Sequence[str] = VARIANTS) -> dict[str, Any]:
    """Rows and figures of bench/step.py in one mode."""
    import step as benchmark

    size = ["--model", "resnet50", "--size", "224", "--batch", "128", "--classes", "1000", "--precision", "bf16"]
    amount = ["--repeats", "7", "--steps", "10"]
    if bench.quick:
        size, amount = ["--model", "test_resnet", "--size", "32", "--batch", "4"], ["--repeats", "2", "--steps", "1"]
    place = ["--device", bench.device, "--output", str(bench.folder)]
    benchmark.main([*place, *size, *amount, "--modes", mode, "--variants", *variants])
    saved = json.loads((bench.folder / "step.json").read_text(encoding="utf-8"))["figures"]
    figures: dict[str, Any] = saved[mode]
    flops = figures["flops"]
    for name, seconds in figures["seconds"].items():
        images = 4 if bench.quick else 128
        middle = statistics.median(seconds)
        rate = images * (2 if name.endswith("2B") else 1) / middle
        share = 100 * flops[name] / middle / matmul_ceiling(bench)
        spread = f"{1e3 * middle:.1f} ms ({1e3 * min(seconds):.1f} to {1e3 * max(seconds):.1f}, n = {len(seconds)})"
        bench.add(name, "", f"{rate:,.0f} images/s, {spread}, {share:.0f} % of the matmul ceiling", None)
    for name, limit in (("CS-KD / cross-entropy", MAX_CSKD), ("mutual / cross-entropy at 2B", MAX_MUTUAL)):
        if name in figures["ratios"]:
            ratio = statistics.median(figures["ratios"][name])
            if mode == "eager":  # memory-bound: the forward is more than a third of the step
                bench.add(name, "", f"{ratio:.3f}", None)
            else:
                bench.bound(name, f"≤ {limit}", ratio, ratio <= limit)
    path = bench.work / f"seconds-{mode}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(known | figures["seconds"]), encoding="utf-8")
    return figures


def command(bench: Bench) -> None:
    """The real command on JPEGs against the synthetic rate: what the loader costs."""
    root, images = make_jpegs(bench), 4 if bench.quick else 128
    for method, variant, compiled in (
        ("cskd", "CS-KD, B", "false"),
        ("cskd", "CS-KD, B", "true"),
        ("cross_entropy", "cross-entropy, B", "true"),
    ):
        mode = "compiled" if compiled == "true" else "eager"
        synthetic = bench.work / f"seconds-{mode}.json"
        if not synthetic.is_file() or (bench.quick and compiled == "true"):
            continue
        name = f"{method}-{mode}"
        epochs = 2 if bench.quick else 3
        settings = [
            f"data={{dataset: {root}, batch_size: {images}, test_split: test, drop_last: true}}",
            f"method={{name: {method}}}",
            f"scheduler.num_epochs={epochs}",
            f"run.val_interval={epochs}",
            f"run.compile={compiled}",
            "run.mixed_precision=bf16",
            f"run.output_dir={bench.folder / name}",
        ]
        settings += ["model={model_name: test_resnet}", "transform.input_size=[3, 32, 32]"] if bench.quick else []
        bench.train("imagenet_resnet50", *settings)
        lines = read_metrics(bench.folder / name)[1:]  # the first epoch starts workers and compiles
        rate = statistics.median(line["images_per_second"] for line in lines)
        wait = statistics.median(line["data_wait_share"] for line in lines)
        best = images / statistics.median(json.loads(synthetic.read_text(encoding="utf-8"))[variant])
        bench.bound(
            f"{method}, {mode}, on JPEGs / synthetic",
            f"≥ {MIN_LOADER_SHARE}",
            rate / best,
            rate >= MIN_LOADER_SHARE * best,
        )
        bench.add(
            f"{method}, {mode}", "", f"{rate:,.0f} images/s; waiting for data {100 * wait:.1f} % of the time", None
        )


def make_jpegs(bench: Bench) -> Path:
    """An image folder of ImageNet-like JPEGs; training files are linked several times, for epochs of some seconds."""
    from pictures import NUM_CLASSES, as_folder, jpegs

    chunks, size, links = (2, 24, 1) if bench.quick else (80, 25, 6)
    with ProcessPoolExecutor() as pool:
        files = [file for chunk in pool.map(jpegs, [size] * chunks, range(chunks)) for file in chunk]
    root, labels = bench.folder / "jpegs", np.arange(len(files)) % (4 if bench.quick else NUM_CLASSES)
    for split, part in (("test", slice(None, len(files) // 5)), ("train", slice(len(files) // 5, None))):
        as_folder(files[part], labels[part], root / split)
    for path in list((root / "train").glob("*/*.JPEG")):
        for link in range(1, links):
            os.link(path, path.with_stem(f"{path.stem}-{link}"))
    return root
