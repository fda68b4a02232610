"""A valid recipe, variants of it, and the shipped recipes."""

from __future__ import annotations

from pathlib import Path

import cskd_hf

ROOT = Path(cskd_hf.__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("**/*.yaml"))

# Tests refer to its line numbers; `data:` is line 1.
GOOD = """\
data:
  dataset: digits
model:
  model_name: preactresnet10_32px
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


def write(folder: Path, content: str | bytes = GOOD) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
