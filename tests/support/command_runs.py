"""Run the commands as users do, on image folders small enough to train in a second.

`command` starts a fresh Python and pays six seconds for imports. All others run real processes, too, but forks of one
that has imported everything. All run offline with an empty Hub cache.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import forks
import numpy as np
import yaml
from PIL import Image
from process_folder import process_folder

ROOT = Path(__file__).resolve().parents[2]

TIMING = ("images_per_second", "data_wait_share", "seconds")  # fields of metrics.jsonl that differ between equal runs


class Result(NamedTuple):
    status: int
    stdout: str
    stderr: str


@functools.cache
def environment() -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "HF_"))}
    return inherited | {
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(process_folder()),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }


def command(*args: object, module: str = "cskd_hf.train", **variables: str) -> Result:
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        env=environment() | variables,
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Result(done.returncode, done.stdout, done.stderr)


@functools.cache
def _fork_server(modules: Sequence[str] = forks.PACKAGE, *options: str) -> str:
    """Start a fork server, which exits with this process; returns its address."""
    address = f"{process_folder()}/socket"
    server = subprocess.Popen(
        [sys.executable, *options, "-c", forks.SERVER, address, str(ROOT / "tests" / "support"), *modules],
        env=environment() | {"TRANSFORMERS_VERBOSITY": "error"},
        cwd=tempfile.gettempdir(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    atexit.register(server.kill)
    return address


def _run(server: str, program: Sequence[object], variables: Mapping[str, str], folder: object) -> Result:
    with open(os.devnull) as stdin, tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        files = [stdin.fileno(), stdout.fileno(), stderr.fileno()]
        status = forks.run(server, list(map(str, program)), variables, files, str(folder))
        stdout.seek(0)
        stderr.seek(0)
        return Result(status, stdout.read(), stderr.read())


def fork(*program: object, folder: object = tempfile.gettempdir(), **variables: str) -> Result:
    """Run a Python program in a fork: `-m` and a module, or a file; then its arguments."""
    return _run(_fork_server(), program, environment() | variables, folder)


def isolated_fork(*program: object, folder: object, variables: Mapping[str, str] | None = None) -> Result:
    """Run a file as `python -I` in a fork that has imported timm and transformers, and never this package."""
    return _run(_fork_server(forks.LIBRARIES, "-I"), program, environment() if variables is None else variables, folder)


def quick(*args: object, module: str = "cskd_hf.train", **variables: str) -> Result:
    return fork("-m", module, *args, **variables)


def draw_image(label: int, seed: int, size: int = 20) -> Image.Image:
    """Noise, brighter in one channel per class; from the fourth class on, with a black band of its size at the top."""
    pixels = np.random.RandomState(seed).randint(0, 150, (size, size, 3), dtype=np.uint8)
    pixels[..., label % 3] += 80
    pixels[: 4 * (label // 3)] = 0
    return Image.fromarray(pixels)


def draw_folder(root: Path, images: Mapping[str, Sequence[int]]) -> Path:
    """Write `root/split/class/*.png`; `images` maps each split to the number of images per class."""
    for number, (split, counts) in enumerate(images.items()):
        for label, count in enumerate(counts):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for i in range(count):
                draw_image(label, 10_000 * number + 100 * label + i).save(folder / f"{i:02d}.png")
    return root


def fifteen_images(tmp_path_factory: Any) -> Path:
    """A fixture: three classes, 15 training and 9 test images."""
    return draw_folder(tmp_path_factory.mktemp("images") / "my images", {"train": (5, 5, 5), "test": (3, 3, 3)})


def write_recipe(path: Path, dataset: Path, **sections: Mapping[str, Any]) -> Path:
    """Two epochs with timm's smallest ResNet, at an input size that leaves its last BatchNorm 2×2 pixels."""
    recipe: dict[str, dict[str, Any]] = {
        "data": {"dataset": str(dataset), "batch_size": 4, "workers": 0},
        "transform": {"input_size": [3, 48, 48], "crop_padding": 2, "crop_pct": 1.0},
        "model": {"model_name": "test_resnet"},
        "method": {"name": "cskd"},
        "optimizer": {"lr": 0.01, "weight_decay": 1.0e-4, "filter_bias_and_bn": False},
        "scheduler": {"sched": "cosine", "num_epochs": 2},
        "run": {"output_dir": str(path.with_suffix(""))},
    }
    for name, keys in sections.items():
        recipe[name] |= keys
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Relative path of every file below → (mtime in ns, content)."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def metrics_lines(folder: Path, *ignored: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without timing and `ignored` fields."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in line.items() if key not in (*TIMING, *ignored)} for line in lines]


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def children(pid: int) -> list[int]:
    """Child processes; of a client of forks.py, its fork."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text()
        found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [*map(int, found), *([int(name.split()[1])] if name.startswith("fork ") else [])]


def _process_tree(pid: int) -> list[int]:
    """A process and its descendants; killing the process group is not enough: torchrun gives each rank its own."""
    return [pid, *(member for child in children(pid) for member in _process_tree(child))]


def kill_within_an_epoch(process: subprocess.Popen[Any], folder: Path) -> dict[str, Any]:
    """Kill a run and its workers once its newest checkpoint is within an epoch; returns that checkpoint's progress."""
    wait_for_a_checkpoint(process, folder)
    progress = {"position": 0}
    while not progress["position"]:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
        pids = _process_tree(process.pid)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        # Stopped while reading: every step writes one checkpoint and removes another.
        newest = max((folder / "checkpoints").glob("step-*"))
        progress = json.loads((newest / "state.json").read_text(encoding="utf-8"))["progress"]
        for pid in pids:
            os.kill(pid, signal.SIGKILL if progress["position"] else signal.SIGCONT)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (folder / "summary.json").exists()
    return progress


def _client(*program: object) -> list[str]:
    return [sys.executable, "-S", "-E", forks.__file__, _fork_server(), *map(str, program)]


def launch(*program: object, processes: int = 2, use_cpus: bool = True) -> subprocess.Popen[str]:
    """Start torchrun on this machine's CPU, itself and its ranks as forks.

    Args:
        use_cpus: for own Accelerators and machines with GPUs.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    options = [f"--nproc_per_node={processes}", f"--master_port={port}", "--no-python"]
    return subprocess.Popen(
        _client("-m", "torch.distributed.run", *options, *_client(*program)),
        env=environment() | ({"ACCELERATE_USE_CPU": "true"} if use_cpus else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*program: object, processes: int = 2, use_cpus: bool = True) -> Result:
    """Run torchrun to its end."""
    with launch(*program, processes=processes, use_cpus=use_cpus) as process:
        stdout, stderr = process.communicate()
    return Result(process.returncode, stdout, stderr)


def start(recipe: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start training; `forked` has its process id."""
    return subprocess.Popen(
        _client("-m", "cskd_hf.train", recipe, *overrides),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def forked(client: int) -> int:
    """The process id of the program that a client of forks.py runs."""
    (pid,) = children(client)
    return pid


def wait_for_a_checkpoint(process: subprocess.Popen[str], folder: Path, name: str = "step-*") -> None:
    end = time.monotonic() + 120
    while not list((folder / "checkpoints").glob(name)):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
