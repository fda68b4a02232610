"""The GPU check itself, on a CPU: every check runs, and the page says what was not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_runs import ROOT, environment


def gpu_check(out: Path, *arguments: str) -> list[dict[str, str]]:
    options = ["--device", "cpu", "--quick", "--out", out, *arguments]
    command = [sys.executable, ROOT / "scripts" / "gpu_check.py", *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr + (out / "log.txt").read_text(encoding="utf-8")
    assert "it needs more than one GPU: NCCL" in (out / "gpu_check.md").read_text(encoding="utf-8")
    return json.loads((out / "gpu_check.json").read_text(encoding="utf-8"))


def test_a_step_is_timed_and_its_ratios_reported(tmp_path):
    rows = {row["check"]: row for row in gpu_check(tmp_path, "--only", "step_eager")}
    assert "images/s" in rows["step_eager: CS-KD, B"]["found"]
    assert float(rows["step_eager: memory, CS-KD / cross-entropy"]["found"]) > 0


@pytest.mark.slow
def test_every_check_runs_on_a_cpu(tmp_path):
    rows = gpu_check(tmp_path, "--minutes", "25")
    assert not [row for row in rows if row["verdict"] in ("FAIL", "skipped")]
    checks = {row["check"].partition(":")[0] for row in rows}
    assert {"command", "resume_fp16", "deterministic", "digits", "two_ranks"} <= checks
