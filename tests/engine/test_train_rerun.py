"""Rerunning the same command: a finished run is reported, a damaged one repaired, another recipe rejected."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from command_runs import (
    Result,
    fifteen_images,
    metrics_lines,
    quick,
    summary_of,
    tree,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from whole_runs import whole_run

images = pytest.fixture(fifteen_images, scope="module")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images) -> tuple[Path, Path, Result]:
    return whole_run(tmp_path_factory.mktemp("finished"), images)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished[1], tmp_path / "copy"))


def test_a_finished_run_is_reported_and_unchanged_also_with_settings_that_change_no_result(finished):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe, "data.workers=1", "run.logging_steps=1", "run.checkpoint_steps=2")
    assert done.status == 0, done.stderr
    assert f"{folder} is finished" in done.stdout
    assert "top1_error" in done.stdout
    assert tree(folder) == before


def test_a_missing_report_of_a_finished_run_is_rewritten(finished, copy):
    recipe, folder, _ = finished
    (copy / "report.html").unlink()
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 0, done.stderr
    before, after = ((path / "report.html").read_text(encoding="utf-8") for path in (folder, copy))
    assert after.replace(str(copy), str(folder)) == before
    assert "Most confident mistakes" in after


def test_a_run_killed_while_writing_results_finishes_from_its_last_checkpoint(finished, copy):
    recipe, folder, _ = finished
    for name in ("summary.json", "report.html", "predictions.safetensors"):
        (copy / name).unlink()
    shutil.rmtree(copy / "model")
    done = quick(recipe, f"run.output_dir={copy}")
    assert done.status == 0, done.stderr
    assert "resuming at step 6, after epoch 2" in done.stdout
    for name in ("model/model.safetensors", "predictions.safetensors", "metrics.jsonl"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes(), name
    assert summary_of(copy)["metrics"] == summary_of(folder)["metrics"]


def test_a_damaged_checkpoint_costs_an_epoch_but_changes_no_result(finished, copy):
    recipe, folder, _ = finished
    (copy / "summary.json").unlink()
    weights = copy / "checkpoints" / "step-00000006" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with SummaryWriter(str(copy / "cskd_hf")) as earlier:
        for step in range(1, 7):
            earlier.add_scalar("update/loss", 9.0, step)
    (file,) = (copy / "cskd_hf").iterdir()
    file.rename(file.with_name("events.out.tfevents.1"))  # TensorBoard reads files by timestamp: this one first
    done = quick(recipe, f"run.output_dir={copy}", "run.report_to=[tensorboard]", "run.logging_steps=1")
    assert done.status == 0, done.stderr
    assert "step-00000006 is damaged" in done.stderr
    assert "resuming at step 3, after epoch 1" in done.stdout
    assert (copy / "model" / "model.safetensors").read_bytes() == (folder / "model" / "model.safetensors").read_bytes()
    assert metrics_lines(copy) == metrics_lines(folder)
    events = EventAccumulator(str(copy / "cskd_hf"))
    events.Reload()
    # The values of repeated updates are replaced.
    assert [(event.step, event.value == 9.0) for event in events.Scalars("update/loss")] == [
        (step, step <= 3) for step in range(1, 7)
    ]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_silently_start_over(finished, copy):
    (copy / "summary.json").unlink()
    for weights in (copy / "checkpoints").rglob("model.safetensors"):
        weights.unlink()
    done = quick(finished[0], f"run.output_dir={copy}")
    assert done.status == 2
    assert "every checkpoint is damaged" in done.stderr.splitlines()[-1]


def test_resume_force_continues_with_the_changed_recipe(finished, copy):
    recipe, folder, _ = finished
    changed = ["scheduler={sched: none, num_epochs: 3}", "optimizer.lr=0.5"]
    done = quick(recipe, f"run.output_dir={copy}", "run.resume=force", *changed)
    assert done.status == 0, done.stderr
    assert "resuming at step 6, after epoch 2" in done.stdout
    lines = metrics_lines(copy)
    assert lines[:2] == metrics_lines(folder)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["lr"] == 0.5
    assert summary_of(copy)["epochs"] == 3
    assert any(note.startswith("settings changed at step 6: optimizer.lr, ") for note in summary_of(copy)["notes"])
    assert yaml.safe_load((copy / "recipe.yaml").read_text(encoding="utf-8"))["optimizer"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (
            ["optimizer.lr=0.02", "method.temperature=2.0"],
            [
                "run.output_dir: {} holds a run of another recipe; name another folder, or set run.resume=force to "
                "continue that run with this recipe",
                "method.temperature: 4.0 in the folder, 2.0 expected",
                "optimizer.lr: 0.01 in the folder, 0.02 expected",
            ],
        ),
        (["run.resume=never"], ["run.resume: never, but "]),
    ],
)
def test_another_recipe_and_a_run_under_resume_never_are_rejected(finished, overrides, lines):
    recipe, folder, _ = finished
    before = tree(folder)
    done = quick(recipe, *overrides)
    assert done.status == 2
    for found, line in zip(done.stderr.splitlines(), lines, strict=True):
        assert found.startswith(f"error: {line.format(folder)}")
    assert tree(folder) == before
