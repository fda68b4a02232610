"""A mistake in a recipe shows in under half a second: whatever reads recipes imports nothing heavy."""

import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cskd_hf"
# The commands and the ground at the root of the package, and all of recipe.
LIGHT = sorted(
    ".".join(("cskd_hf", *path.relative_to(PACKAGE).with_suffix("").parts))
    for path in (*PACKAGE.glob("[!_]*.py"), *PACKAGE.glob("recipe/[!_]*.py"), PACKAGE / "recipe/__main__.py")
)
CODE = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "timm", "datasets", "accelerate", "numpy", "matplotlib", "PIL"} & set(sys.modules)
    assert not heavy, f"{name} imports {', '.join(sorted(heavy))} at module level"
"""


def test_commands_recipe_and_ground_import_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", CODE, *LIGHT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
