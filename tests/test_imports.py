"""Commands start fast: a mistake in a recipe shows before any heavy import."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys
import cskd_hf
from cskd_hf import check, evaluate, predict, publish, reproduce, train
from cskd_hf.errors import UserError
from cskd_hf.recipe import recipe, resolve

errors = []
for command in (train, check):
    try:
        command.main(["digits_resnet10", "optimizer.lr=fast"])
    except UserError as error:
        errors.append(str(error))
try:
    evaluate.main(["hf-hub:owner/name", "data.batch_size=0"])
except UserError as error:
    errors.append(str(error))
print(json.dumps([errors, sorted(sys.modules)]))
"""
HEAVY = {"torch", "timm", "datasets", "numpy", "pandas", "matplotlib", "accelerate", "transformers", "huggingface_hub"}


def test_commands_reject_mistakes_without_heavy_imports():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    errors, modules = json.loads(result.stdout)
    assert errors == [
        "command line: optimizer.lr: read 'fast'; allowed: a valid number",
        "command line: optimizer.lr: read 'fast'; allowed: a valid number",
        "command line: data.dataset: missing; it has no default\n"
        "command line: data.batch_size: read 0; allowed: greater than or equal to 1",
    ]
    assert HEAVY.isdisjoint(modules)
