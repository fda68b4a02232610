"""scripts/smoke.py: every method from plan to table and figures."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

import pytest
from command_runs import ROOT, environment

from cskd_hf.methods import METHODS


@pytest.mark.parametrize(
    "methods",
    [["cross_entropy", "cskd", "distillation"], pytest.param(list(METHODS), marks=pytest.mark.slow)],
    ids=["some", "all"],
)
def test_methods_go_from_plan_to_table_and_figures(tmp_path, methods):
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "smoke.py", "--runs", tmp_path, "--methods", *methods],
        env=environment(),
        cwd=tempfile.gettempdir(),
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert done.returncode == 0, done.stderr
    total = len(methods) + 2  # cross-entropy and CS-KD twice
    assert f"device-hours (processes × hours) in {total} runs; 0 of {total} finished" in done.stdout
    assert done.stderr.splitlines()[-1] == f"smoke: {total} of {total} runs finished"
    assert len(list(tmp_path.glob("*/summary.json"))) == total

    cells = json.loads((tmp_path / "tables" / "smoke.json").read_text(encoding="utf-8"))["cells"]
    errors = {cell["method"]: cell for cell in cells if cell["metric"] == "top1_error"}
    assert len(errors) == len(methods)
    for method, cell in errors.items():
        folders = [tmp_path / f"digits_resnet10-{method.replace('+', '_')}-seed{seed}" for seed in cell["values"]]
        summaries = [json.loads((folder / "summary.json").read_text(encoding="utf-8")) for folder in folders]
        assert list(cell["values"].values()) == [summary["metrics"]["last"]["top1_error"] for summary in summaries]
        assert (cell["std"] is not None) == (method in ("cskd", "cross_entropy"))
    assert {cell["metric"] for cell in cells} == {"top1_error", "top5_error", "ece", "ece_scaled", "recall_at_1"}
    assert done.stdout.count(" ± ") >= 2
    for name in ("smoke.md", "smoke.tex"):
        assert (tmp_path / "tables" / name).read_text(encoding="utf-8").count("CS-KD" if name[-1] == "x" else "`cskd`")
    assert list((tmp_path / "tables" / "figures").glob("*.png"))
