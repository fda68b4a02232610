"""The checks of gpu_check.py, one per process: `python scripts/gpu_checks.py NAME --device cuda --work DIR`.

Each writes DIR/NAME.json: rows of what was checked, expected and found, with a verdict.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch._dynamo.utils import counters

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "bench"), str(HERE.parent)]

from cskd_hf.batch import Batch  # noqa: E402
from cskd_hf.data.batches import GlobalBatches  # noqa: E402
from cskd_hf.data.sampling import ClassPairSampler  # noqa: E402
from cskd_hf.engine.build import build_objective  # noqa: E402
from cskd_hf.engine.learner import build_learner  # noqa: E402
from cskd_hf.engine.scalars import Totals  # noqa: E402
from cskd_hf.engine.updates import forward_backward  # noqa: E402
from cskd_hf.methods.base import Experiment  # noqa: E402
from cskd_hf.recipe.recipe import load_recipe  # noqa: E402

# Targets on one H100: see scripts/bench/README.md.
MIN_RATE, MAX_CSKD, MAX_MUTUAL, MAX_MEMORY, MIN_LOADER_SHARE = 2800, 1.34, 1.02, 1.14, 0.9
VARIANTS = ("cross-entropy, B", "CS-KD, B", "cross-entropy, 2B", "mutual CS-KD, 2B")
# Mean and standard deviation of the top-1 error on the CPU, n = 5: recipes/README.md.
DIGITS_ON_CPU = {"cross_entropy": (3.69, 0.73), "cskd": (1.88, 0.30)}


class Bench:
    """Collects the rows of one check.

    Args:
        name: of the check.
        device: "cuda" or "cpu".
        work: folder shared by all checks.
        quick: sizes that only show that the check runs.
    """

    def __init__(self, name: str, device: str, work: Path, quick: bool) -> None:
        self.name, self.device, self.work, self.quick = name, device, work, quick
        self.rows: list[dict[str, str]] = []
        self.folder = work / name
        self.folder.mkdir(exist_ok=True)

    def add(self, what: str, expected: str, found: str, good: bool | None) -> None:
        """`good` None: a figure to report, without a bound. Bounds of speed do not hold in a quick run."""
        verdict = {None: "–", True: "ok", False: "FAIL"}[good]
        self.rows.append({"check": f"{self.name}: {what}", "expected": expected, "found": found, "verdict": verdict})
        self.save()

    def bound(self, what: str, expected: str, value: float, good: bool, unit: str = "") -> None:
        self.add(
            what,
            expected,
            f"{value:,.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}",
            None if self.quick else good,
        )

    def save(self) -> None:
        (self.work / f"{self.name}.json").write_text(json.dumps(self.rows), encoding="utf-8")

    def train(self, *arguments: str, check: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
        """The real command, in a process that sees the device or, for the CPU, no GPU."""
        command = [sys.executable, "-m", "cskd_hf.train", *arguments]
        done = subprocess.run(command, env=self.environment(**environment), text=True, capture_output=True)
        print(done.stdout[-20_000:], done.stderr[-20_000:], flush=True)
        if check and done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
        return done

    def environment(self, **more: str) -> dict[str, str]:
        paths = [str(HERE.parent), os.environ.get("PYTHONPATH", "")]
        hidden = {} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        return os.environ | hidden | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"} | more

    def digits(self, name: str, *overrides: str) -> list[str]:
        """Arguments of a short run on the digits, in its own folder."""
        quick = ["scheduler.num_epochs=2"] if self.quick else ["scheduler.num_epochs=4"]
        model = "model={model_name: test_resnet}"
        common = [model, "data.batch_size=48", "data.workers=2", "run.checkpoint_steps=5", "run.logging_steps=1000"]
        return ["digits_resnet10", *common, *quick, *overrides, f"run.output_dir={self.folder / name}"]


def versions(bench: Bench) -> None:
    """What the figures belong to."""
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
        ("cskd", "CS-KD, B", "true"),
        ("cross_entropy", "cross-entropy, B", "true"),
        ("cskd", "CS-KD, B", "false"),
    ):
        mode = "compiled" if compiled == "true" else "eager"
        synthetic = bench.work / f"seconds-{mode}.json"
        if not synthetic.is_file() or (bench.quick and compiled == "true"):
            continue
        name = f"{method}-{mode}"
        epochs = 2 if bench.quick else 4
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
        text = (bench.folder / name / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()][1:]  # the first epoch starts workers and compiles
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


def gpu_tests(bench: Bench) -> None:
    if bench.device == "cpu":
        bench.add("pytest -m gpu", "passed", "needs a GPU", None)
        return
    command_line = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-m",
        "gpu",
        "tests/test_gpu.py",
        "-p",
        "no:cacheprovider",
    ]
    done = subprocess.run(command_line, cwd=HERE.parent, env=bench.environment(), text=True, capture_output=True)
    print(done.stdout[-30_000:], done.stderr[-5_000:])
    summary = re.findall(r"\d+ (?:passed|failed|error|skipped)[^=]*", done.stdout)
    failed = [line.removeprefix("FAILED ")[:150] for line in done.stdout.splitlines() if line.startswith("FAILED")]
    found = "; ".join([summary[-1].strip() if summary else f"exit status {done.returncode}", *failed])
    bench.add("pytest -m gpu", "passed", found, done.returncode == 0)


def accumulation(bench: Bench) -> None:
    """Two accumulated micro-batches under every compile mode give the eager gradient; a short batch recompiles once."""
    torch.backends.cudnn.allow_tf32 = False  # its rounding flips ReLUs, which changes gradients by per cents
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
                weight=size / 120,
                all_reduce=number == 2,
                totals=totals,
                num_samples=size,
                step=0,
                timeout=60.0,
                grad_checkpointing=False,
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
    """fp16 with a loss scale: a killed and resumed run has the weights and the scaler of one left alone."""
    precision = "fp16" if bench.device == "cuda" else "bf16"
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
    for setting in ("true", "false"):
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
    done = bench.train(
        *("digits_resnet10", "model={model_name: resnet50}", "transform.input_size=[3, 768, 768]"),
        *("data={dataset: digits, batch_size: 700, workers: 8}", f"run.output_dir={bench.folder / 'run'}"),
        *("run.mixed_precision=bf16", "scheduler.num_epochs=1"),
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    good = done.returncode in (1, 2) and len(lines) == 1 and "fits, by measurement" in lines[0]
    bench.add("message", "one line with a batch size that fits", " / ".join(lines)[:400] or "none", good)


def two_ranks(bench: Bench) -> None:
    """Two ranks: on one GPU, NCCL usually refuses; the message is recorded."""
    command_line = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "cskd_hf.train"),
        *bench.digits("run", "run.ddp_timeout=60"),
    ]
    variables = {"ACCELERATE_USE_CPU": "true"} if bench.device == "cpu" else {}
    started = time.monotonic()
    done = subprocess.run(command_line, env=bench.environment(**variables), text=True, capture_output=True)
    print(done.stdout[-5_000:], done.stderr[-20_000:])
    messages = [line for line in done.stderr.splitlines() if "Duplicate GPU" in line or line.startswith("error: ")]
    found = f"exit status {done.returncode} after {time.monotonic() - started:.0f} s"
    found += f": {messages[0][:200]}" if messages else ""
    bench.add("two ranks on one device", "", found, done.returncode == 0 if bench.device == "cpu" else None)


CHECKS = {
    function.__name__: function
    for function in (
        *(versions, step_eager, step_compiled, command, gpu_tests, accumulation, resume_fp16, deterministic, digits),
        *(out_of_memory, two_ranks, step_compiled_pairs, step_reduce_overhead),
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", choices=list(CHECKS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.check, args.device, args.work, args.quick)
    bench.save()
    CHECKS[args.check](bench)


if __name__ == "__main__":
    main()
