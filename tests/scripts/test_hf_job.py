"""Training as a Hugging Face Job: the copy of a run folder, and a killed job that resumes from it alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
from command_runs import draw_folder, environment, write_recipe
from safetensors.torch import load_file

SCRIPT = "scripts/hf_job.py"


def contents(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_the_copy_follows_the_run_folder_and_restores_it(tmp_path):
    from hf_job import Mirror

    folder, copy = tmp_path / "run", tmp_path / "copies" / "run"
    mirror = Mirror(folder, copy)
    mirror.restore()  # nothing to restore
    first = {"recipe.yaml": "recipe", "metrics.jsonl": "1", "checkpoints/step-00000001/state.json": "cut short"}
    write(folder, {**first, "run.lock": "me", "checkpoints/.partial-step-00000002/optimizer.pt": "half"})
    mirror.update()
    assert contents(copy) == first

    restored = Mirror(tmp_path / "restored", copy)
    restored.restore()
    assert contents(restored.folder) == {"recipe.yaml": "recipe", "metrics.jsonl": "1"}
    second = {"metrics.jsonl": "12", "checkpoints/step-00000002/state.json": "{}"}
    write(restored.folder, second)
    (copy / "recipe.yaml").write_text("unchanged files are not copied again")
    restored.update()
    assert contents(copy) == second | {"recipe.yaml": "unchanged files are not copied again"}
    assert os.listdir(copy / "checkpoints") == ["step-00000002"]


@pytest.mark.skipif(int(version("huggingface_hub").split(".")[0]) < 2, reason="huggingface_hub 2.4 reads the header")
def test_the_header_configures_the_job():
    hf = Path(sys.executable).with_name("hf")
    done = subprocess.run(
        [hf, "jobs", "uv", "run", "--dry-run", "-v", "hf://buckets/me/runs:/runs", SCRIPT, "finetune"],
        env=environment() | {"HF_TOKEN": "hf_token"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    for line in ("flavor   a10g-large", "timeout  12h", "./dist:/dist", "hf://buckets/me/runs:/runs"):
        assert line in done.stdout


def test_a_job_without_a_bucket_is_rejected(tmp_path):
    recipe = write_recipe(tmp_path / "run.yaml", tmp_path)
    command = [sys.executable, SCRIPT, str(recipe), f"--copies={tmp_path / 'none'}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr == (
        f"error: --copies: {tmp_path / 'none'} is no folder; mount a bucket there: "
        f"-v hf://buckets/NAME:{tmp_path / 'none'}\n"
    )


@pytest.mark.slow
def test_a_killed_job_resumes_from_the_copy_to_the_same_weights(tmp_path):
    images = draw_folder(tmp_path / "images", {"train": (20, 20), "test": (4, 4)})
    recipe = write_recipe(tmp_path / "run.yaml", images)

    def job(disk: str, copies: str) -> subprocess.Popen[str]:
        (tmp_path / disk).mkdir()
        (tmp_path / copies).mkdir(exist_ok=True)
        command = [sys.executable, SCRIPT, str(recipe), "--every=0.2", f"--copies={tmp_path / copies}"]
        return subprocess.Popen(
            [*command, "run.checkpoint_steps=1", "scheduler.num_epochs=12", "run.output_dir=run"],
            env=environment() | {"TMPDIR": str(tmp_path / disk)},
            start_new_session=True,
            stdout=subprocess.PIPE,
            text=True,
        )

    assert job("disk", "whole").wait(300) == 0
    killed = job("first", "copies")
    while not list((tmp_path / "copies").glob("run/checkpoints/step-*/state.json")):
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    resumed = job("second", "copies")  # another machine: nothing but the copy is left
    output, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0
    assert "resuming at step" in output
    whole, again = (load_file(tmp_path / copies / "run/model/model.safetensors") for copies in ("whole", "copies"))
    assert all(whole[name].equal(again[name]) for name in whole)
    assert not (tmp_path / "copies" / "run" / "run.lock").exists()
