"""Commands, recipe and ground start fast: a mistake in a recipe shows before any heavy import."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cskd_hf"
LIGHT = sorted(
    ".".join(("cskd_hf", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in (*PACKAGE.glob("[!_]*.py"), *PACKAGE.glob("recipe/[!_]*.py"), PACKAGE / "recipe/__main__.py")
)
PROGRAM = """
import importlib, json, sys

HEAVY = {"torch", "timm", "datasets", "accelerate", "transformers", "numpy", "pandas", "matplotlib", "PIL"}
HEAVY |= {"huggingface_hub", "safetensors"}
loaded = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded[name] = sorted(HEAVY & sys.modules.keys())

from cskd_hf import check, evaluate, train
from cskd_hf.errors import UserError

errors = []
for command, *argv in (
    (train, "digits_resnet10", "optimizer.lr=fast"),
    (check, "digits_resnet10", "optimizer.lr=fast"),
    (evaluate, "hf-hub:owner/name", "data.dataset=digits", "data.batch_size=0"),
):
    try:
        command.main(argv)
    except UserError as error:
        errors.append(str(error))
print(json.dumps([loaded, errors, sorted(HEAVY & sys.modules.keys())]))
"""


def test_mistakes_show_without_heavy_imports():
    result = subprocess.run([sys.executable, "-c", PROGRAM, *LIGHT], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    loaded, errors, after = json.loads(result.stdout)
    assert loaded == {name: [] for name in LIGHT}
    assert errors == [
        "command line: optimizer.lr: read 'fast'; allowed: number > 0, or null",
        "command line: optimizer.lr: read 'fast'; allowed: number > 0, or null",
        "command line: data.batch_size: read 0; allowed: whole number ≥ 1",
    ]
    assert after == []
