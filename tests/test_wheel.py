"""The built wheel, installed in a fresh environment and used from an empty folder."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from command_runs import ROOT, environment

pytestmark = pytest.mark.slow


def run(*command: object, folder: Path) -> str:
    variables = {key: value for key, value in environment().items() if key != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=variables, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, and the wheel built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    return folder


@pytest.fixture(scope="module")
def scripts(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel; dependencies come from this one."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (wheel,) = dist.glob("*.whl")
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--ignore-installed", "--no-index", wheel, folder=folder)
    return folder / "bin"


def test_the_metadata_pass_twine(dist: Path) -> None:
    run(sys.executable, "-m", "twine", "check", "--strict", *dist.iterdir(), folder=dist)


def test_the_wheel_holds_the_recipes_and_the_type_marker_but_no_tests(dist: Path) -> None:
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    recipes = {f"cskd_hf/_recipes/{path.name}" for path in (ROOT / "recipes").glob("*.yaml")}
    assert recipes | {"cskd_hf/py.typed", "cskd_hf/hub/card.md.jinja", "cskd_hf/paper/paper_results.yaml"} <= names
    assert not [name for name in names if name.startswith(("tests/", "scripts/"))]


def test_every_console_script_prints_its_help(scripts: Path, tmp_path: Path) -> None:
    commands = ("train", "check", "evaluate", "predict", "publish", "reproduce")
    assert {path.name for path in scripts.glob("cskd-*")} == {f"cskd-{name}" for name in commands}
    for name in commands:
        assert "usage: " in run(scripts / f"cskd-{name}", "--help", folder=tmp_path)


def test_the_library_imports_from_the_wheel(scripts: Path, tmp_path: Path) -> None:
    code = "import cskd_hf; print(cskd_hf.CSKD().temperature, cskd_hf.__file__)"
    temperature, file = run(scripts / "python", "-c", code, folder=tmp_path).split(maxsplit=1)
    assert temperature == "4.0"
    assert Path(file).is_relative_to(scripts.parent)


def test_a_shipped_recipe_is_checked_by_its_name(scripts: Path, tmp_path: Path) -> None:
    assert "no problems" in run(scripts / "cskd-check", "digits_resnet10", folder=tmp_path)
