"""scripts/compare.py: finished runs side by side."""

from __future__ import annotations

import subprocess
import sys

from command_runs import ROOT, environment
from written_runs import one_run, write_finished


def compare(*folders):
    command = [sys.executable, ROOT / "scripts" / "compare.py", *folders]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=100)


def test_runs_are_listed_side_by_side_with_definitions_and_loading_code(tmp_path):
    runs = [one_run(tmp_path, method) for method in ("cskd", "cross_entropy")]
    write_finished(runs[0], 33.0, scaled_ece=4.5, speed=1234.0)
    write_finished(runs[1], 46.0)
    done = compare(*(run.folder for run in runs))
    assert done.returncode == 0, done.stderr
    header, first, second, *rest = done.stdout.splitlines()
    assert header.split("  ")[0] == "method"
    assert first.split()[1:] == ["33", "1", "1", "10", "4.5", "1.5", "1,234"]
    assert second.split()[1:] == ["46", "1", "–", "10", "–", "–", "100"]
    assert "top1_error: target is not the top class; percent" in rest
    assert f'timm.create_model("local-dir:{runs[0].folder}/model", pretrained=True)' in done.stdout


def test_an_unfinished_run_is_reported(tmp_path):
    done = compare(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'summary.json'}: cannot be read")
