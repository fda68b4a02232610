"""What a run ran on: versions, git, hardware, command."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import cskd_hf
from cskd_hf.data import roi

_PACKAGES: tuple[str, ...] = (
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "accelerate",
    "safetensors",
    "huggingface-hub",
    "pydantic",
)
_PACKAGES += ("numpy", "pillow", "pyarrow", "transformers")


def describe_environment(num_processes: int, mixed_precision: str) -> dict[str, Any]:
    """Everything of the machine that numbers and speed depend on; no user, host or path names."""
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
        # Only a crop's part is decoded where there is one: within a level of what it is without.
        "region_decoder": Path(roi.description()).name,
        "num_processes": num_processes,
        "mixed_precision": mixed_precision,
        "command": shlex.join(["python", "-m", "cskd_hf.train", *sys.argv[1:]]),
    }


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
