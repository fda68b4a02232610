"""What every GPU check needs: its rows, its folder, and the real command in a subprocess."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]  # of the repository


class Bench:
    """Collects the rows of one check, in a folder that all checks share; `quick` only shows that the check runs."""

    def __init__(self, name: str, device: str, work: Path, quick: bool) -> None:
        self.name, self.device, self.work, self.quick = name, device, work, quick
        self.rows: list[dict[str, str]] = []
        self.folder = work / name
        self.folder.mkdir(exist_ok=True)

    def add(self, what: str, expected: str, found: str, good: bool | None) -> None:
        """`good` None: a figure to report, without a bound. Bounds of speed do not hold in a quick run."""
        verdict = {None: "–", True: "ok", False: "FAIL"}[good]
        self.rows.append({"check": f"{self.name}: {what}", "expected": expected, "found": found, "verdict": verdict})
        self.save()

    def bound(self, what: str, expected: str, value: float, good: bool, unit: str = "") -> None:
        self.add(
            what,
            expected,
            f"{value:,.3g}{unit}" if value < 1000 else f"{value:,.0f}{unit}",
            None if self.quick else good,
        )

    def save(self) -> None:
        (self.work / f"{self.name}.json").write_text(json.dumps(self.rows), encoding="utf-8")

    def train(self, *arguments: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
        """The real command; its output goes to the log, stderr is returned, too."""
        with tempfile.TemporaryFile("w+", encoding="utf-8") as stderr:
            command = [sys.executable, "-m", "cskd_hf.train", *arguments]
            done = subprocess.run(command, env=self.environment(**variables), text=True, stderr=stderr)
            stderr.seek(0)
            done.stderr = stderr.read()
        print(done.stderr[-20_000:], flush=True)
        if check and done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
        return done

    def environment(self, **variables: str) -> dict[str, str]:
        hidden = {} if self.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
        return os.environ | hidden | {"HF_HUB_OFFLINE": "1"} | variables

    def digits(self, name: str, *overrides: str) -> list[str]:
        """Arguments of a short run on the digits, in its own folder."""
        quick = ["scheduler.num_epochs=2"] if self.quick else ["scheduler.num_epochs=4"]
        model = "model={model_name: test_resnet}"
        common = [model, "data.batch_size=48", "data.workers=2", "run.checkpoint_steps=5", "run.logging_steps=1000"]
        return ["digits_resnet10", *common, *quick, *overrides, f"run.output_dir={self.folder / name}"]
