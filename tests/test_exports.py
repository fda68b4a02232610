"""`import cskd_hf`: what it exports, and what it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import environment

import cskd_hf


def test_importing_the_package_loads_neither_torch_nor_numpy() -> None:
    heavy = "{'torch', 'timm', 'datasets', 'numpy', 'matplotlib'}"
    code = f"import sys, cskd_hf; dir(cskd_hf); sys.exit(', '.join({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.stderr.strip() == ""


def test_every_exported_name_is_defined_where_type_checkers_look_for_it() -> None:
    tree = ast.parse(Path(cskd_hf.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.asname: node.module for node in block.body for alias in node.names}
    assert typed == cskd_hf._MODULE_OF
    assert set(cskd_hf.__all__) == set(typed) <= set(dir(cskd_hf))
    for name, module in typed.items():
        assert getattr(cskd_hf, name) is getattr(sys.modules[module], name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'cskd_hf' has no attribute 'CSKDD'$"):
        cskd_hf.CSKDD  # noqa: B018
