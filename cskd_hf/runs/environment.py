"""The environment of a run: versions, commit, hardware, command; one entry per segment between restarts."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import cskd_hf
from cskd_hf.errors import UserError
from cskd_hf.files import write_json

NAME = "environment.json"
CHANGES = ("settings changed at step", "the images changed at step", "the number of processes changed at step")
"""How the notes of `notes_of_changes` begin."""
_PACKAGES = (
    *("torch", "torchvision", "timm", "datasets", "accelerate", "safetensors", "huggingface-hub", "pydantic"),
    *("numpy", "pillow", "pyarrow", "transformers"),
)


def describe_environment(num_processes: int, mixed_precision: str) -> dict[str, Any]:
    """Everything about the machine that numbers and speed depend on; no user, host or path names."""
    import torch

    from cskd_hf.data import roi

    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    accelerators = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cskd_hf": cskd_hf.__version__,
        "python": platform.python_version(),
        "packages": versions,
        "git": _git(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu(),
            "cpu_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "accelerators": accelerators,
            "cuda": torch.version.cuda if accelerators else None,
        },
        # Decides speed, not pixels: every decoder gives Pillow's.
        "region_decoder": Path(roi.description()).name,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "command": shlex.join(["python", "-m", "cskd_hf.train", *sys.argv[1:]]),
    }


def record_environment(folder: Path, environment: dict[str, Any], step: int) -> None:
    """Record that the run starts or resumes in `environment` at `step`.

    A restart in the environment of the last segment adds none. Segments that start at `step` or later are dropped:
    their updates are about to be repeated.
    """
    segments = read_environments(folder) if step and (folder / NAME).is_file() else []
    segments = [segment for segment in segments if segment["started_at_step"] < step]
    if not segments or segments[-1] | environment != segments[-1]:
        segments.append({"started_at_step": step, **environment})
    write_json(folder / NAME, {"segments": segments})


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """The environments of a run, first to last: `describe_environment`'s keys and `started_at_step`.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads((folder / NAME).read_text(encoding="utf-8"))["segments"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / NAME}: cannot be read: {error}; train the run again into another folder") from None


def notes_of_changes(segments: Sequence[Mapping[str, Any]]) -> list[str]:
    """A note for each step at which a resume changed the processes or, forced, settings or images."""
    notes, (of_settings, of_images, of_processes) = [], CHANGES
    for before, after in pairwise(segments):
        step, earlier, later = after["started_at_step"], _settings(before), _settings(after)
        changed = sorted(key for key in earlier.keys() | later.keys() if earlier.get(key) != later.get(key))
        if changed:
            notes.append(f"{of_settings} {step}: {', '.join(changed)}; earlier updates had others")
        if before["images"] != after["images"]:
            notes.append(
                f"{of_images} {step}: earlier updates saw others, maybe some that hold-out or test set have now"
            )
        old, new = before["num_processes"], after["num_processes"]
        if old != new:
            notes.append(f"{of_processes} {step}: from {old} to {new}, and with it the images per update")
    return notes


def _settings(segment: Mapping[str, Any]) -> dict[str, Any]:
    """By "section.key", without the place of the images, which may move."""
    settings = {f"{name}.{key}": value for name, keys in segment["settings"].items() for key, value in keys.items()}
    del settings["data.dataset"]
    return settings


def hardware_line(environment: dict[str, Any]) -> str:
    """Processes, device and precision, as a card or a report states them: "8 × NVIDIA A100, bf16"."""
    hardware, precision = environment["hardware"], environment["mixed_precision"]
    threads = f"{hardware['torch_threads']} thread{'' if hardware['torch_threads'] == 1 else 's'} each"
    device = hardware["accelerators"][0] if hardware["accelerators"] else f"{hardware['cpu']} (CPU), {threads}"
    return f"{environment['num_processes']} × {device}, {'float32' if precision == 'no' else precision}"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout this package runs from; None for an installed package."""
    root = Path(cskd_hf.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}
