"""The benchmarks run, write Markdown and JSON, and hold like against like; their figures are nobody's test."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def test_ratios_are_of_one_repeat_and_spreads_name_the_range(bench):
    reporting = bench("reporting")
    assert reporting.ratios([4.0, 9.0], [2.0, 3.0]) == [2.0, 3.0]
    assert reporting.spread([3.0, 1.0, 2.0], 1, 10) == "20.0 (10.0 to 30.0)"
    assert reporting.table(("a", "b"), [(1, "x")]) == "| a | b |\n|---|---|\n| 1 | x |"


def test_a_step_is_measured_in_time_and_memory(bench, tmp_path, capsys):
    settings = "--device cpu --model test_resnet --size 32 --batch 2 --classes 5 --modes eager --repeats 2 --steps 1"
    bench("step").main([*settings.split(), "--output", str(tmp_path)])
    page = (tmp_path / "step.md").read_text()
    assert page == capsys.readouterr().out
    assert "| CS-KD / cross-entropy |" in page
    held = json.loads((tmp_path / "step.json").read_text())
    eager = held["figures"]["eager"]
    assert {len(values) for values in eager["seconds"].values()} == {2}
    assert eager["bytes"]["CS-KD, B"] < eager["bytes"]["cross-entropy, 2B"]
    assert eager["bytes"]["CS-KD, B, activations recomputed"] < eager["bytes"]["CS-KD, B"]
    assert held["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_the_plain_script_draws_partners_of_the_anchors_class(bench):
    class Folder:
        classes = ("a", "b", "c")
        targets = (np.arange(20) % 3).tolist()

        def __len__(self) -> int:
            return len(self.targets)

    seen = []
    for batch in bench("plain_loop").PairBatches(Folder(), 8):
        anchors, partners = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        assert [index % 3 for index in anchors] == [index % 3 for index in partners]
        seen += anchors
    assert sorted(seen) == list(range(20))


def test_the_network_of_the_epochs_learns(bench):
    model = bench("tiny_network").bench_tiny(num_classes=4)
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_benchmark_that_fails_is_named_and_the_others_run(bench, tmp_path, monkeypatch, capsys):
    run_all = bench("run_all")
    for name, text in (("good", "print('a page')"), ("bad", "raise SystemExit(3)")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "BENCHES", {"bad": ("bad.py",), "good": ("good.py",)})
    assert run_all.main(["--output", str(tmp_path / "out")]) == 1
    assert "error: bad failed" in capsys.readouterr().err
    assert "a page" in (tmp_path / "out" / "together.md").read_text()


def test_every_benchmark_that_is_run_is_there(bench):
    for script, *settings in bench("run_all").BENCHES.values():
        assert (BENCH / script).is_file()
        known = (BENCH / script).read_text()
        assert all(f'"{setting}"' in known for setting in settings if setting.startswith("--"))


@pytest.mark.slow
def test_starts_are_timed_by_the_real_commands(bench, tmp_path):
    bench("start").main(["--rows", "2000", "--repeats", "1", "--shares", "95", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "start.json").read_text())["figures"]
    assert set(figures["starts"]) == {"fresh", "resumed at 95 %"}
    assert all(len(values) == 1 for part in figures.values() for values in part.values())


@pytest.mark.slow
def test_what_safety_costs_is_measured_on_one_process_and_two(bench, tmp_path):
    bench("overhead").main(["--repeats", "1", "--only", "steps", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "overhead.json").read_text())["figures"]["steps"]
    assert all(len(figures[f"{processes} processes"]["asked"]) == 1 for processes in (1, 2))


@pytest.mark.slow
def test_epochs_of_both_programs_are_timed_alike(bench, tmp_path):
    bench("end_to_end").main(
        ["--images", "80", "--batch-size", "8", "--epochs", "2", "--repeats", "1", "--output", str(tmp_path)]
    )
    figures = json.loads((tmp_path / "end_to_end.json").read_text())["figures"]
    assert all(0 <= share <= 1 for values in figures["data_wait_share"].values() for share in values)
    assert len(figures["images_per_second"]) == 2
