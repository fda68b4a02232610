"""A recipe without a mistake, copies of it that differ, the shipped ones, and commands that read them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cskd_hf

ROOT = Path(cskd_hf.__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("**/*.yaml"))

# Line numbers in recipe_mistakes.py count from `data:` on line 1.
GOOD = """\
data:
  dataset: digits
model:
  model_name: preact_resnet10_32px
method:
  name: cskd
  temperature: 4.0
optimizer:
  lr: 0.1
scheduler:
  num_epochs: 2
"""


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fixture in the files that name it so: `folder = pytest.fixture(own_folder)`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def write(folder: Path, content: str | bytes = GOOD) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python …` in a folder, as a user would."""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)
