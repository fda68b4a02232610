"""The page of all settings is current, and gives every one a meaning."""

from __future__ import annotations

import re

from recipe_files import ROOT

from cskd_hf.recipe.__main__ import main


def test_the_page_of_all_settings_is_current_and_complete(capsys):
    assert main(["--settings"]) == 0
    page = capsys.readouterr().out
    assert (ROOT / "cskd_hf" / "recipe" / "SETTINGS.md").read_text(encoding="utf-8") == page, (
        "run: python -m cskd_hf.recipe --settings > cskd_hf/recipe/SETTINGS.md"
    )
    for row in re.findall(r"^\| `.*$", page, flags=re.MULTILINE):
        cells = re.split(r"(?<!\\) \| ", row.strip("| "))
        assert len(cells) == 4, row
        assert all(cells), row
