"""The demo Space before its page opens: requirements, card and command-line mistakes."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from command_runs import draw_folder, draw_image, environment, quick, summary_of, write_recipe
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SPACE = Path(__file__).resolve().parents[2] / "scripts" / "space"


def requirements():
    lines = (SPACE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return by_name(line for line in lines if line and line[0] != "#")


def by_name(lines):
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


def test_the_space_requires_the_versions_of_the_package():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((SPACE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    package = by_name(project["dependencies"])
    ours = requirements()
    del ours["gradio"]
    assert {name: line.specifier for name, line in ours.items()} == {name: package[name].specifier for name in ours}


def test_the_card_names_an_existing_file_and_an_allowed_gradio():
    _, metadata, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    card = yaml.safe_load(metadata)
    assert (SPACE / card["app_file"]).is_file()
    assert card["sdk"] == "gradio"
    assert requirements()["gradio"].specifier.contains(card["sdk_version"])


def run_app(*args, before):
    """Run the app as a command, and `before` in its process first."""
    code = f"""
        import runpy, sys
        {before}
        sys.argv = ["app.py", *{list(map(str, args))}]
        runpy.run_path({str(SPACE / "app.py")!r}, run_name="__main__")
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment(), capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("args", "before", "message"),
    [
        ((), "", "name the weights to show, as an argument or in the variable MODEL"),
        (
            ("runs/a",),
            "sys.modules['gradio'] = None",
            "the page needs gradio; from a checkout: pip install -r scripts/space/requirements.txt",
        ),
    ],
)
def test_missing_weights_or_gradio_give_one_line(args, before, message):
    done = run_app(*args, before=before)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


def test_the_page_shows_facts_and_bars_of_each_model(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SPACE))
    app = importlib.import_module("app")
    images = draw_folder(tmp_path / "images", {"train": [8] * 6, "test": [4] * 6, "holdout": [36] * 6})
    holdout = {"test_split": "test", "holdout": "holdout"}
    assert quick(write_recipe(tmp_path / "run.yaml", images, data=holdout)).status == 0
    run, bare = app.read_contender(str(tmp_path / "run")), app.read_contender(f"local-dir:{tmp_path / 'run' / 'model'}")
    metrics = summary_of(tmp_path / "run")["metrics"]
    assert (run.title, run.name) == ("CS-KD", "run")
    assert f"{metrics['metrics_scaled']['ece']:.2f} % as shown, {metrics['last']['ece']:.2f} % as trained" in run.facts
    assert run.facts[1:].startswith(metrics["calibration"]["verdict"][1:] + ". ECE on")
    assert (bare.title, bare.facts) == ("model", "These weights come without metrics.")
    draw_image(1, seed=2).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert app.answer([run, bare], str(tmp_path / "good.png")).count("<li>") == 10
    assert "not a readable picture" in app.answer([run], str(tmp_path / "bad.png"))
