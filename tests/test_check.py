"""The command `cskd-check`: arguments, imports and exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import ROOT, draw_folder, quick, write_recipe

from cskd_hf import check
from cskd_hf.errors import UserError


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_recipe(tmp_path / "run.yaml", draw_folder(tmp_path / "images", {"train": (4, 3), "test": (2, 2)}))


@pytest.mark.parametrize(("full", "sampled_from"), [([], 5_000), ([], 2), (["--full"], 2)])
def test_a_clean_folder_gives_exit_status_0(recipe, capsys, monkeypatch, full, sampled_from):
    monkeypatch.setattr("cskd_hf.checks.run.SAMPLED_FROM", sampled_from)
    assert check.main([str(recipe), *full]) == 0
    sampled = sampled_from == 2 and not full
    assert ("no problems in the sample; --full reads every image" in capsys.readouterr().out) == sampled


def test_an_unreadable_recipe_or_dataset_gives_exit_status_2(tmp_path, recipe):
    with pytest.raises(UserError, match="unknown key"):
        check.main([str(recipe), "optimizer.lrr=1"])
    done = quick(recipe, f"data.dataset={tmp_path}/missing", module="cskd_hf.check")
    assert (done.status, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: data.dataset: read '{tmp_path}/missing'; write a folder, ")


def test_the_command_imports_nothing_heavy():
    heavy = "import sys, cskd_hf.check; print({'torch', 'timm', 'datasets', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
