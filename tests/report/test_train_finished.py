"""The folder and the output of a finished run of the real command."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from command_runs import Result, fifteen_images, fork, metrics_lines, quick, summary_of, write_recipe
from safetensors.torch import load_file
from summaries import measured
from whole_runs import whole_run

from cskd_hf.evaluation.metrics import DEFINITIONS, evaluate_predictions
from cskd_hf.runs.environment import read_environments

images = pytest.fixture(fifteen_images, scope="module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images) -> tuple[Path, Path, Result]:
    return whole_run(tmp_path_factory.mktemp("finished"), images)


def test_a_run_leaves_no_loader_process(tmp_path, images):
    """Even if something still references the loader: a library may store an exception, and with it every frame."""
    program = tmp_path / "program.py"
    program.write_text(
        "import gc, multiprocessing, sys\n"
        "from cskd_hf import train\n"
        "gc.disable()\n"
        "print(train.main(sys.argv[1:]), multiprocessing.active_children())\n"
    )
    done = fork(program, write_recipe(tmp_path / "run.yaml", images), "data.workers=2")
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0 []"


def test_a_run_folder_has_every_file(finished):
    _, folder, _ = finished
    assert sorted(entry.name for entry in folder.iterdir()) == [
        "checkpoints",
        "environment.json",
        "figures",
        "metrics.jsonl",
        "model",
        "predictions.safetensors",
        "recipe.yaml",
        "report.html",
        "summary.json",
    ]
    # 12 images to train on: 3 updates an epoch.
    assert sorted(entry.name for entry in (folder / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert sorted(entry.name for entry in (folder / "model").iterdir()) == [
        "README.md",
        "class_map.txt",
        "config.json",
        "model.safetensors",
    ]
    assert list((folder / "figures").glob("*.png"))
    assert (folder / "report.html").read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_file_modes_follow_the_umask(finished):
    _, folder, _ = finished
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    assert {name: oct(mode) for name, mode in modes.items() if mode != modes["recipe.yaml"]} == {}


def test_the_summary_has_the_documented_keys(finished):
    _, folder, _ = finished
    summary = summary_of(folder)
    assert {key: summary[key] for key in ("seed", "epochs", "selection")} == {
        "seed": 0,
        "epochs": 2,
        "selection": "last",
    }
    assert len(bytes.fromhex(summary["recipe_hash"])) == 8
    assert summary["dataset"]["images"] == {"train": 12, "holdout": 3, "test": 9}
    assert summary["dataset"]["train_images_per_class"] == [4, 4, 4]
    assert set(summary["metrics"]) == {"last", "temperature", "metrics_scaled", "calibration", "class_errors"}
    assert list(summary["metrics"]["last"]) == list(DEFINITIONS)
    throughput = summary["throughput"]
    assert {"images_per_second", "data_wait_share", "peak_memory_bytes"} <= set(throughput)
    assert throughput["images_per_second"] == pytest.approx(24 / throughput["train_seconds"])
    assert 0 < throughput["data_wait_share"] < 1
    assert throughput["peak_memory_bytes"] is None
    assert summary["skipped_images"] == {"train": 0, "holdout": 0, "test": 0}


def test_the_metrics_are_those_of_the_saved_predictions(finished):
    _, folder, _ = finished
    metrics, saved = summary_of(folder)["metrics"], load_file(folder / "predictions.safetensors")
    logits, target, features = saved["logits"], saved["target"], saved["features"]
    assert logits.shape == (9, 3)
    assert features.shape == (9, 512)
    assert target.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert saved["row"].tolist() == list(range(9))
    assert metrics["last"]["top1_error"] == pytest.approx(100 * (logits.argmax(1) != target).double().mean().item())
    again = evaluate_predictions(logits, target, features, train_images=[4, 4, 4])
    assert measured(metrics["last"]) == pytest.approx(measured(again), abs=1e-9)
    errors = [100 * (logits[target == label].argmax(1) != label).double().mean().item() for label in range(3)]
    assert metrics["class_errors"] == pytest.approx(errors)
    assert metrics["last"]["macro_error"] == pytest.approx(sum(errors) / 3)
    assert saved["holdout_logits"].shape == (3, 3)


def test_a_temperature_without_evidence_is_refused_in_the_same_words_everywhere(finished):
    """Three hold-out images."""
    _, folder, done = finished
    metrics = summary_of(folder)["metrics"]
    assert (metrics["temperature"], metrics["metrics_scaled"]) == (None, None)
    verdict = "not calibrated: 3 hold-out images, fewer than the 200 that a temperature needs; T = 1"
    assert metrics["calibration"]["verdict"] == verdict
    assert verdict in done.stdout
    for name in ("report.html", "model/README.md", "model/config.json"):
        assert verdict in (folder / name).read_text(encoding="utf-8"), name
    assert json.loads((folder / "model" / "config.json").read_text())["cskd"]["temperature"] is None


def test_metrics_have_one_line_per_epoch(finished):
    _, folder, _ = finished
    lines = metrics_lines(folder)
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 3), (1, 6)]
    for line in lines:
        assert {"lr", "train/loss", "train/task_loss", "train/kd_loss", "train/top1_error"} <= set(line)
        assert {"holdout/top1_error", "holdout/nll", "holdout/ece"} <= set(line)
        assert not [key for key in line if key.startswith("test/")]  # evaluated once, at the end
        assert line["train/loss"] == pytest.approx(line["train/task_loss"] + line["train/kd_loss"], rel=1e-6)


def test_output_to_a_file_has_no_progress_bar(finished):
    _, folder, (_, stdout, stderr) = finished
    assert "\r" not in stdout + stderr
    assert "\x1b" not in stdout + stderr
    assert [line[:11] for line in stdout.splitlines() if line.startswith("epoch")] == ["epoch   1/2", "epoch   2/2"]
    assert "4 x 1 processes x 1 accumulated = 4 anchors (8 images)" in stdout
    assert f'timm.create_model("local-dir:{folder}/model", pretrained=True)' in stdout
    for name in measured(summary_of(folder)["metrics"]["last"]):
        assert f"\n{name} " in stdout


def test_the_environment_does_not_name_the_host(finished):
    recipe, folder, _ = finished
    (environment,) = read_environments(folder)
    assert environment["num_processes"] == 1
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["command"] == f"python -m cskd_hf.train {recipe}"
    assert os.uname().nodename not in json.dumps(environment | {"command": ""})


def test_the_resolved_recipe_reproduces_the_run(finished, tmp_path):
    _, folder, _ = finished
    done = quick(folder / "recipe.yaml", f"run.output_dir={tmp_path / 'again'}")
    assert done.status == 0, done.stderr
    assert metrics_lines(tmp_path / "again") == metrics_lines(folder)
    again = summary_of(tmp_path / "again")
    assert again["metrics"] == summary_of(folder)["metrics"]
    assert again["recipe_hash"] == summary_of(folder)["recipe_hash"]
