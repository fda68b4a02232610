"""The demo Space before its page opens: its files, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from command_runs import environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SPACE = Path(__file__).resolve().parents[2] / "scripts" / "space"


def requirements():
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return by_name(line for line in lines if line and line[0] != "#")


def by_name(lines):
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


def test_the_space_asks_for_the_versions_that_the_package_asks_for():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((SPACE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = by_name(project["dependencies"])
    ours = requirements()
    del ours["gradio"]
    assert {name: line.specifier for name, line in ours.items()} == {name: package[name].specifier for name in ours}


def test_the_spaces_card_names_a_file_that_is_there_and_a_gradio_that_is_allowed():
    _, metadata, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(metadata)
    assert (SPACE / card["app_file"]).is_file()
    assert card["sdk"] == "gradio"
    assert requirements()["gradio"].specifier.contains(card["sdk_version"])


def run_app(*args, before="", **variables):
    """The app as a command; `before` is run first in its process."""
    code = f"""
        import runpy, sys
        {before}
        sys.argv = ["app.py", *{list(map(str, args))}]
        runpy.run_path({str(SPACE / "app.py")!r}, run_name="__main__")
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_page_without_weights_is_one_line():
    done = run_app()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: name the weights to show, as an argument or in the variable MODEL")
    assert done.stderr.count("\n") == 1


def test_a_missing_gradio_is_one_line():
    done = run_app("runs/a", before="sys.modules['gradio'] = None")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the page needs gradio: pip install -r scripts/space/requirements.txt")
    assert done.stderr.count("\n") == 1
