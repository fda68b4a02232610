"""What the pages point at exists, and the README's code runs."""

import re
from pathlib import Path

import pytest
import timm
import torch

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = (".", "cskd_hf/**", "recipes", "scripts/**", "tests")
PAGES = sorted(page for folder in FOLDERS for page in ROOT.glob(f"{folder}/*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_relative_links_lead_to_a_page_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@each_page
def test_the_modules_scripts_and_recipes_named_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"-m (cskd_hf[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(r"(?<![\w/.-])((?:scripts|recipes)/[\w/]+\.(?:py|yaml|sbatch|md))", text):
        if not re.search(r"[A-Z]{4}", path):  # scripts/prepare_NAME.py stands for any
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(("page", "folder"), [("CONTRIBUTING.md", "cskd_hf"), ("tests/README.md", "tests")])
def test_the_files_named_in_backticks_exist(page: str, folder: str) -> None:
    for path in re.findall(r"`([a-z_/]+\.(?:py|md|yaml))", (ROOT / page).read_text(encoding="utf-8")):
        bases = (ROOT, ROOT / folder, ROOT / folder / "support")
        assert any((base / path).is_file() for base in bases), path


def test_the_library_example_of_the_readme_trains() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## As a library")[1]
    code = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert code is not None
    labels = [0, 1, 2, 0, 1, 2, 0, 1]
    model = timm.create_model("test_resnet", num_classes=3)
    rows = [(torch.rand(3, 32, 32), y) for y in labels]
    exec(code[1], {"model": model, "labels": labels, "train_dataset": rows, "num_epochs": 1})
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
