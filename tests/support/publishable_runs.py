"""Finished runs to publish, trained once per test process by the real command; private paths have telltale names."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_runs import draw_folder, isolated_fork, quick, write_recipe
from process_folder import process_folder


@functools.cache
def home() -> Path:
    return process_folder("secret user ")


@functools.cache
def images() -> Path:
    """Four classes, in a folder with a space in its name; split `holdout` suffices for a temperature."""
    return draw_folder(home() / "my images", {"train": [10] * 4, "test": [5] * 4, "holdout": [52] * 4})


@functools.cache
def trained(seed: int = 0, holdout: float | str = "holdout", model_name: str = "test_resnet") -> Path:
    """A run folder shared by tests; `copied` gives one to modify. With the default hold-out set it is calibrated."""
    path = home() / f"{model_name}-{holdout}-seed{seed}.yaml"
    settings: dict[str, Any] = {
        "data": {"test_split": "test", "holdout": holdout},
        "model": {"model_name": model_name},
        "optimizer": {"lr": 0.05},
    }
    if model_name.endswith("32px"):
        settings["transform"] = {"input_size": [3, 16, 16]}
    done = quick(write_recipe(path, images(), **settings), f"run.seed={seed}")
    assert done.status == 0, done.stderr
    return path.with_suffix("")


def copied(run: Path, folder: Path) -> Path:
    """A copy that a test may publish or damage, without checkpoints."""
    shutil.copytree(run, folder / run.name, ignore=shutil.ignore_patterns("checkpoints"))
    return folder / run.name


@pytest.fixture(scope="module")
def verified_in_a_fork() -> Iterator[None]:
    """Releases are loaded in forks, which saves the imports of a fresh process."""

    def run(command: list[str], env: dict[str, str], cwd: Path, **_: Any) -> subprocess.CompletedProcess[str]:
        executable, option, *program = command
        assert (executable, option) == (sys.executable, "-I")
        done = isolated_fork(*program, folder=cwd, variables=env)
        return subprocess.CompletedProcess(command, done.status, done.stdout, done.stderr)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cskd_hf.hub.verify.subprocess", SimpleNamespace(run=run))
        yield
