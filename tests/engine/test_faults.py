"""Faults in mid-run are reported in one line and lose no checkpoint."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_runs import (
    ROOT,
    children,
    draw_folder,
    fork,
    forked,
    launch,
    quick,
    start,
    wait_for_a_checkpoint,
    write_recipe,
)
from report_pages import evaluated, write_unfinished
from summaries import make_recipe

from cskd_hf.engine.failures import explain
from cskd_hf.engine.run import Run
from cskd_hf.report.console import Console


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return draw_folder(tmp_path_factory.mktemp("images") / "set", {"train": (10, 10, 10), "test": (3, 3, 3)})


FULL = """
import resource
from cskd_hf import train
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))  # smaller than the weights' 1.5 MB
train.cli()
"""


def test_a_full_disk_leaves_earlier_checkpoints_intact(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images)
    assert quick(recipe, "run.max_hours=1e-9").status == 143
    (before,) = (tmp_path / "run" / "checkpoints").iterdir()
    (tmp_path / "full.py").write_text(FULL, encoding="utf-8")
    done = fork(tmp_path / "full.py", recipe)
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the checkpoint of step 8 could not be written: ")
    assert line.endswith(f"rerun the same command; the last complete checkpoint is {before}")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [before.name]
    assert quick(recipe).status == 0


def test_a_report_that_cannot_be_written_does_not_stop_training(tmp_path, capsys):
    (write_unfinished(tmp_path / "run", []) / "report.html").mkdir()
    shown = evaluated([0, 0, 1], [0, 1, 1])
    run = SimpleNamespace(
        is_main=True,
        watched="test",
        images=SimpleNamespace(splits={"test": shown.images.split}),
        recipe=make_recipe(tmp_path / "run"),
        folder=tmp_path / "run",
        console=Console(True),
    )
    Run.report(run, shown.predictions)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("note: report.html was not written: ")
    assert not list((tmp_path / "run").glob("*.tmp"))


def test_a_disk_that_turns_read_only_leaves_earlier_checkpoints_intact(tmp_path, images):
    """Only checkpoints/: a mount with an open lock file cannot be made read-only."""
    settings = ("run.checkpoint_steps=1", "scheduler.num_epochs=200")
    recipe = write_recipe(tmp_path / "run.yaml", images)
    process = start(recipe, *settings)
    wait_for_a_checkpoint(process, tmp_path / "run")
    folder = str(tmp_path / "run" / "checkpoints")
    mounted = subprocess.run(["mount", "--bind", folder, folder], capture_output=True, text=True)
    if mounted.returncode:
        process.kill()
        process.communicate()
        pytest.skip(f"needs permission to mount: {mounted.stderr.strip()}")
    try:
        while subprocess.run(["mount", "-o", "remount,ro,bind", folder], stderr=subprocess.DEVNULL).returncode:
            assert process.poll() is None  # the remount fails while a checkpoint is being written
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 1
        line = stderr.splitlines()[-1]
        assert line.startswith("error: the checkpoint of step ")
        assert "Read-only file system" in line
        assert "the last complete checkpoint is" in line
    finally:
        subprocess.run(["umount", folder], check=True)
    assert "resuming at step" in quick(recipe, *settings, "run.max_hours=1e-9").stdout


def test_a_killed_worker_is_reported_and_the_run_resumes_from_its_checkpoint(tmp_path, images):
    settings = ("run.checkpoint_steps=1", "data.batch_size=1", "scheduler.num_epochs=20", "data.workers=1")
    recipe = write_recipe(tmp_path / "run.yaml", images)
    process = start(recipe, *settings)
    wait_for_a_checkpoint(process, tmp_path / "run")
    workers = [pid for pid in children(forked(process.pid)) if "resource_tracker" not in command_line(pid)]
    assert workers
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 1, stderr
    assert stderr.splitlines()[-1].startswith("error: a loader worker was killed ("), stderr
    assert "the last complete checkpoint is" in stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            "Pin memory thread exited unexpectedly",
            "a loader worker was killed (Pin memory thread exited unexpectedly); ",
        ),
        (
            "cumsum_cuda_kernel does not have a deterministic implementation, but you set 'torch.use_deterministic_…'.",
            "run.deterministic: torch has no deterministic cumsum_cuda_kernel; write run.deterministic=false; ",
        ),
    ],
)
def test_a_fault_that_only_a_gpu_shows_is_one_line(tmp_path, error, line):
    assert explain(RuntimeError(error), SimpleNamespace(folder=tmp_path)).startswith(line)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_a_lost_rank_is_named_by_a_survivor_and_the_run_resumes(tmp_path, images, rank):
    recipe = write_recipe(tmp_path / "run.yaml", images, data={"batch_size": 2})
    settings = ("run.checkpoint_steps=5", "scheduler.num_epochs=100", "run.ddp_timeout=30")
    process = launch("-m", "cskd_hf.train", recipe, *settings)
    wait_for_a_checkpoint(process, tmp_path / "run")
    victim = forked(next(pid for pid in children(forked(process.pid)) if f"\0RANK={rank}\0" in environment_of(pid)))
    os.kill(victim, signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    (line,) = (line for line in stderr.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: lost process {rank} on {socket.gethostname()} (pid {victim}) at step ")
    assert "the last complete checkpoint is" in line
    assert "resuming at step" in quick(recipe, *settings, "run.max_hours=1e-9", "run.resume=force").stdout


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_non_finite_weights_are_never_saved(tmp_path, images):
    # Weight decay overflows the weights in one step although the loss is finite.
    done = quick(
        write_recipe(tmp_path / "run.yaml", images),
        "optimizer.lr=1e10",
        "optimizer.weight_decay=1e38",
        "run.checkpoint_steps=1",
    )
    assert done.status == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: weights are not finite at step 1, although every loss was: ")
    assert "; no checkpoint was saved at this step. Lower optimizer.lr, " in line
    assert line.endswith("there is no checkpoint yet")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_learning_rate_is_printed_with_its_rule(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images, optimizer={"lr": None, "lr_base": 1.28})
    done = quick(recipe, "run.max_hours=1e-9", "run.gradient_accumulation_steps=2")
    update = "4 x 1 processes x 2 accumulated = 8 anchors (16 images)"
    assert f"{update}\n  lr         0.04 = lr_base 1.28 x 8 / 256; " in done.stdout


@pytest.mark.parametrize(
    ("processes", "kills"),
    [(1, 2), pytest.param(1, 5, marks=pytest.mark.slow), pytest.param(2, 5, marks=pytest.mark.slow)],
)
def test_kills_at_random_moments_change_nothing(tmp_path, monkeypatch, processes, kills):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    torture = importlib.import_module("torture")
    table, different = torture.torture(tmp_path, kills, processes, seed=processes)
    assert len(table) == kills
    assert different
    assert set(map(tuple, different.values())) == {()}
