"""The pages that people read point at what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    page for top in (".", "cskd_hf/**", "recipes", "scripts/**", "tests") for page in ROOT.glob(f"{top}/*.md")
)


def anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_leads_to_a_page_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not fragment or fragment in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_module_script_and_recipe_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"-m (cskd_hf[\w.]*\w)", text):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module
    for path in re.findall(r"(?<![\w/.-])((?:scripts|recipes)/[\w/]+\.(?:py|yaml|sbatch|md))", text):
        if not re.search(r"[A-Z]{4}", path):  # recipes/NAME.yaml stands for any
            assert (ROOT / path).is_file(), path


def test_every_file_that_contributing_names_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|md|yaml))`", text):
        assert (ROOT / path).is_file() or (ROOT / "cskd_hf" / path).is_file(), path


def test_the_readme_stays_a_front_door() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
