"""The benchmarks run, write Markdown and JSON, and compare like with like; their numbers are not tested."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"


@pytest.fixture
def bench(scripts_on_path: None) -> Callable[[str], ModuleType]:
    return importlib.import_module


def test_ratios_compare_times_of_one_repeat_and_spreads_name_the_range(bench):
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
    content = json.loads((tmp_path / "step.json").read_text())
    eager = content["figures"]["eager"]
    assert {len(values) for values in eager["seconds"].values()} == {2}
    assert eager["bytes"]["CS-KD, B"] < eager["bytes"]["cross-entropy, 2B"]
    assert eager["bytes"]["CS-KD, B, checkpointed"] < eager["bytes"]["CS-KD, B"]
    assert content["environment"]["packages"]["torch"] == torch.__version__.partition("+")[0]


def test_lists_of_lists_draw_partners_from_the_anchors_class(bench):
    indices = []
    for batch in bench("others").ListOfListsPairs((np.arange(20) % 3).tolist(), 8):
        anchors, partners = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        assert [index % 3 for index in anchors] == [index % 3 for index in partners]
        indices += anchors
    assert sorted(indices) == list(range(20))


def test_every_weight_of_the_tiny_network_gets_a_gradient(bench):
    model = bench("tiny_network").bench_tiny(num_classes=4)
    model(torch.randn(2, 3, 224, 224)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_failing_benchmark_is_named_and_the_others_run(bench, tmp_path, monkeypatch, capsys):
    run_all = bench("run_all")
    for name, text in (("good", "print('a page')"), ("bad", "raise SystemExit(3)")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "BENCHES", {"bad": ("bad.py",), "good": ("good.py",)})
    assert run_all.main(["--output", str(tmp_path / "out")]) == 1
    assert "error: bad failed" in capsys.readouterr().err
    assert "a page" in (tmp_path / "out" / "together.md").read_text()


def test_every_listed_benchmark_exists_with_its_options(bench):
    for script, *settings in bench("run_all").BENCHES.values():
        assert (BENCH / script).is_file()
        code = (BENCH / script).read_text() + (BENCH / "reporting.py").read_text()
        assert all(f'"{setting}"' in code for setting in settings if setting.startswith("--"))


@pytest.mark.slow
def test_starts_of_the_real_commands_are_timed(bench, tmp_path):
    bench("start").main(["--rows", "2000", "--repeats", "1", "--shares", "95", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "start.json").read_text())["figures"]
    assert set(figures["starts"]) == {"fresh", "resumed at 95 %"}
    assert all(len(values) == 1 for part in figures.values() for values in part.values())


@pytest.mark.slow
def test_checkpoints_signals_and_memory_are_measured(bench, tmp_path):
    bench("overhead").main(["--repeats", "1", "--epochs", "2", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "overhead.json").read_text())["figures"]
    assert all(len(figures["steps"][f"{processes} processes"]["agree"]) == 1 for processes in (1, 2))
    assert len(figures["memory"]) == 2


@pytest.mark.slow
def test_epochs_of_the_command_and_the_plain_loop_are_timed(bench, tmp_path):
    bench("end_to_end").main(
        ["--images", "80", "--batch-size", "8", "--epochs", "2", "--repeats", "1", "--output", str(tmp_path)]
    )
    figures = json.loads((tmp_path / "end_to_end.json").read_text())["figures"]
    assert all(0 <= share <= 1 for values in figures["data_wait_share"].values() for share in values)
    assert len(figures["images_per_second"]) == 2


@pytest.mark.slow
def test_preparing_and_opening_datasets_is_timed(bench, tmp_path):
    bench("image_sets").main(["--images", "40", "--rows", "60000", "--repeats", "1", "--output", str(tmp_path)])
    figures = json.loads((tmp_path / "image_sets.json").read_text())["figures"]
    assert all(len(times["prepare"]) == 1 for times in figures["preparing"].values())
    assert set(figures["opening"]) == {"0.0", "0.01"}
