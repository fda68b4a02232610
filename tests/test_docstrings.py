"""Docstring examples run; every exported function and class has one."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest
import timm
import torch

import cskd_hf
from cskd_hf.models.export import export_model
from cskd_hf.recipe.sections import ModelSection, TransformSection

ROOT = Path(cskd_hf.__file__).parent
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the examples, with a finished run: runs/example."""
    folder = tmp_path_factory.mktemp("examples")
    model = timm.create_model("test_resnet", num_classes=2)
    transform = TransformSection(input_size=(3, 32, 32), mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    place, settings = folder / "runs" / "example" / "model", ModelSection(model_name="test_resnet")
    export_model(model, place, settings, transform, ("cat", "dog"), readme="", facts={"temperature": 1.5})
    return folder


def run(example: doctest.DocTest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("name", sorted(set(cskd_hf.__all__) - {"METHODS"}))
def test_the_docstring_has_an_example_that_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Empty globals: an example imports what it uses.
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(cskd_hf, name), name, globs={})
    assert example.examples, f"{name} has no example"
    run(example, folder, monkeypatch)


@pytest.mark.parametrize("room", ["data", "evaluation", "methods", "models", "paper", "recipe", "report", "runs"])
def test_the_examples_of_internal_names_run(room: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [path for path in (ROOT / room).glob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    modules = [importlib.import_module(f"cskd_hf.{room}.{path.stem}") for path in paths]
    found = [example for module in modules for example in doctest.DocTestFinder(exclude_empty=True).find(module)]
    internal = [example for example in found if example.name.rpartition(".")[2] not in cskd_hf.__all__]
    assert internal
    for example in internal:
        run(example, folder, monkeypatch)
