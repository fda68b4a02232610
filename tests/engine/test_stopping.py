"""Signals and time limits: a checkpoint, the exit status, and an exact resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from command_runs import (
    children,
    draw_folder,
    environment,
    fork,
    forked,
    launch,
    metrics_lines,
    quick,
    start,
    summary_of,
    torchrun,
    wait_for_a_checkpoint,
    write_recipe,
)

from cskd_hf.runs.progress import Progress

# The first epoch is the best on the hold-out set, so the second is the last.
EVERY_STEP = (
    *("run.checkpoint_steps=1", "scheduler.num_epochs=3", "scheduler.sched=none", "optimizer.lr=0.1"),
    *("data.holdout=0.2", "run.selection=best_holdout", "run.early_stopping_patience=1"),
    *("run.mixed_precision=bf16", "run.model_ema=true", "run.model_ema_decay=0.5", "run.model_ema_warmup=true"),
)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images") / "set", {"train": (10, 10, 10), "test": (3, 3, 3)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    """An uninterrupted run."""
    recipe = write_recipe(tmp_path_factory.mktemp("whole") / "run.yaml", images)
    assert quick(recipe, *EVERY_STEP).status == 0
    selected = summary_of(recipe.with_suffix(""))["selected"]
    assert (selected["epoch"], selected["epochs_trained"]) == (1, 2)
    return recipe.with_suffix("")


def newest_state(folder: Path) -> dict[str, Any]:
    return json.loads((max((folder / "checkpoints").glob("step-*")) / "state.json").read_text(encoding="utf-8"))


def assert_same_run(folder: Path, other: Path) -> None:
    for name in ("model/model.safetensors", "predictions.safetensors", "figures/pairs.png"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics_lines(folder) == metrics_lines(other)
    ignored = ("name", "throughput")
    one, two = ({k: v for k, v in summary_of(f).items() if k not in ignored} for f in (folder, other))
    assert one == two


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGINT, 130, marks=SLOW),
        pytest.param(signal.SIGUSR1, 143, marks=SLOW),
    ],
    ids=lambda part: str(part),
)
def test_a_signal_stops_at_the_next_step_and_the_run_resumes(tmp_path, images, whole, number, status):
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"workers": 1})
    process = start(recipe, *EVERY_STEP)
    wait_for_a_checkpoint(process, tmp_path / "run")
    # Terminals and schedulers signal the workers, too: they must not die before the training process stops.
    for pid in [*children(forked(process.pid)), process.pid]:
        os.kill(pid, number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    progress = newest_state(tmp_path / "run")["progress"]
    where = Progress(**progress).place
    assert stderr.splitlines()[-1] == f"stopped by {number.name} at {where}; rerun the same command to resume"
    assert not (tmp_path / "run" / "summary.json").exists()
    assert "This run is not finished" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    done = quick(recipe, *EVERY_STEP)
    assert f"resuming at {where}" in done.stdout
    assert_same_run(tmp_path / "run", whole)


SIGNALLED = """
import os, signal
from cskd_hf import train
from cskd_hf.engine import evaluation
predict_split = evaluation.predict_split

def signal_at_the_second_batch(*args, stop, **keywords):
    calls = []
    def stop_after_signal():
        calls.append(None)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return stop()
    return predict_split(*args, stop=stop_after_signal, **keywords)

evaluation.predict_split = signal_at_the_second_batch
train.cli()
"""


def test_a_signal_during_evaluation_stops_it_and_resuming_repeats_it_first(tmp_path):
    images = draw_folder(tmp_path / "images", {"train": (4, 4), "test": (2, 2)})
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"batch_size": 1}, scheduler={"num_epochs": 1})
    (tmp_path / "signalled.py").write_text(SIGNALLED, encoding="utf-8")
    folder = tmp_path / "run"
    done = fork(tmp_path / "signalled.py", recipe, *EVERY_STEP[:1])
    assert done.status == 143, done.stderr
    progress = newest_state(folder)["progress"]
    assert (progress["step"], progress["epoch"]) == (8, 1)
    assert progress["line"]["epoch"] == 0  # trained, and not yet evaluated
    assert not (folder / "metrics.jsonl").exists() or not metrics_lines(folder)
    assert quick(recipe, *EVERY_STEP[:1]).status == 0
    (line,) = metrics_lines(folder)
    assert line["step"] == 8
    assert "test/top1_error" in line
    other = tmp_path / "other"
    assert quick(recipe, *EVERY_STEP[:1], f"run.output_dir={other}").status == 0
    assert_same_run(folder, other)


def test_a_time_limit_stops_after_each_step_and_loses_none(tmp_path, images, whole):
    recipe = write_recipe(tmp_path / "run.yaml", images)
    starts = 0
    while not (tmp_path / "run" / "summary.json").exists():
        done = quick(recipe, *EVERY_STEP, "run.max_hours=1e-9" if starts < 12 else "run.max_hours=1")
        starts += 1
        if starts <= 12:
            assert done.status == 143, done.stderr
            assert "stopped by run.max_hours at step" in done.stderr
        assert starts < 30
    assert starts == 13
    assert_same_run(tmp_path / "run", whole)


def test_a_second_signal_kills_at_once(tmp_path):
    code = """
import os, signal, time
from accelerate import Accelerator
from cskd_hf.engine import stopping
stopping.SECOND_AFTER = 0.5
with stopping.StopRequest(Accelerator(cpu=True)) as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)  # passed on by a launcher
    assert stop.agreed() and stop.reason == "SIGTERM" and stop.status == 143
    print("ready", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == -signal.SIGTERM


def test_two_ranks_stop_at_the_same_step_and_resume_to_the_weights_of_an_uninterrupted_run(tmp_path, images):
    settings = (*EVERY_STEP, "data.batch_size=1")
    recipe = write_recipe(tmp_path / "run.yaml", images)
    process = launch("-m", "cskd_hf.train", recipe, *settings)
    wait_for_a_checkpoint(process, tmp_path / "run")
    process.send_signal(signal.SIGTERM)  # torchrun forwards it to the ranks
    _, stderr = process.communicate(timeout=120)
    assert process.returncode != 0
    assert stderr.count("stopped by SIGTERM at step ") == 1
    assert not (tmp_path / "run" / "summary.json").exists()
    assert torchrun("-m", "cskd_hf.train", recipe, *settings).status == 0
    other = tmp_path / "other"
    assert torchrun("-m", "cskd_hf.train", recipe, *settings, f"run.output_dir={other}").status == 0
    selected = summary_of(other)["selected"]
    assert selected["epoch"] < selected["epochs_trained"]
    assert_same_run(tmp_path / "run", other)
