"""`check --speed`: the measurement, and the advice drawn from it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from command_runs import draw_folder, quick, write_recipe

from cskd_hf.checks import speed
from cskd_hf.checks.speed_report import Speed, advise, describe, estimate
from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import load_recipe

NUMBER = r"\s*[\d,.]+"
ON_CUDA = Speed(
    loader=1000.0,
    step=2600.0,
    together=990.0,
    wait_share=0.6,
    batch_size=128,
    views=2,
    workers=4,
    cores=16,
    threads=None,
    peak_memory_bytes=12_300_000_000,
)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = draw_folder(tmp_path / "images", {"train": (5, 4), "test": (2, 2)})
    return write_recipe(tmp_path / "run.yaml", folder)


# the measurement


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.workers=2", "run.gradient_accumulation_steps=2"),
        ("method={name: cskd_e}", "data.workers=1", "run.grad_checkpointing=true"),
        ("method={name: cross_entropy}", "data.holdout=0.3", "optimizer.opt=adamw"),
    ],
)
def test_loader_and_step_are_measured_without_a_run_folder(recipe, settings, capsys, tmp_path):
    assert speed.check_speed(load_recipe(recipe, settings), seconds=0.8) == 0
    stdout = capsys.readouterr().out
    for name in ("loader", "step", "together"):
        assert re.search(rf"^{name} {NUMBER} images/s  ", stdout, flags=re.MULTILINE), stdout
    assert "test_resnet, " in stdout
    assert re.search(rf"^time {NUMBER} seconds per epoch of [69] images$", stdout, flags=re.MULTILINE)
    assert re.search(rf"^ {NUMBER} (seconds|hours) in total: 2 epochs", stdout, flags=re.MULTILINE)
    assert len(stdout.splitlines()) < 24
    assert max(map(len, stdout.splitlines())) <= 120
    assert not (tmp_path / "run").exists()


def test_the_command_measures_with_the_flag(recipe):
    done = quick(recipe, "--speed", "--seconds", 0.8, module="cskd_hf.check")
    assert done.status == 0, done.stderr
    assert re.search(r"^limit +the (step|loader)", done.stdout, flags=re.MULTILINE)


def test_recipes_that_cannot_train_are_rejected(recipe, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^model\.model_name: timm has no"):
        speed.check_speed(load_recipe(recipe, ["model.model_name=resnet8"]))
    with pytest.raises(UserError, match=r"^data\.batch_size: an epoch's last batch leaves 1 "):
        speed.check_speed(load_recipe(recipe, ["data.batch_size=1", "transform.input_size=[3, 8, 8]"]))
    (tmp_path / "images" / "train" / "class 1" / "02.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"split 'train', row 7.*unreadable image"):
        speed.check_speed(load_recipe(recipe), seconds=0.8)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        speed.check_speed(load_recipe(recipe))


# the advice


ON_CPU = {"workers": 4, "cores": 2, "threads": 2, "loader": 500.0}


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {},  # 250 images a second on each core
            [
                "limit      the loader: the step is 2.6 times as fast",
                "workers    data.workers=11, one core each, would feed the device",
            ],
        ),
        (
            {"cores": 8},
            ["data.workers=11,", "this process may use 8 cores.", "from a checkout: scripts/resize_dataset.py"],
        ),
        (
            {"workers": 16, "loader": 5200.0},
            [
                "limit      the step: the loader is 2.0 times as fast",
                "workers    data.workers=8, one core each, would feed the device",
            ],
        ),
        (
            # An image takes 2 / 500 s of a core to load and 2 / 125 s to train: one part in five.
            {**ON_CPU, "step": 125.0},
            [
                "limit      the step: they share the cores (2); loading is 20 % of the work, the step 80 %",
                "workers    1 core would feed a device as fast as this step",
            ],
        ),
        ({**ON_CPU, "step": 4000.0}, ["limit      the loader: "]),
    ],
)
def test_the_advice_names_what_limits_and_how_many_workers_feed_the_device(changes, lines):
    advice = "\n".join(advise(dataclasses.replace(ON_CUDA, **changes)))
    assert [line for line in lines if line not in advice] == []


def test_workers_beyond_the_cores_do_not_count():
    assert dataclasses.replace(ON_CUDA, workers=32, loader=4000.0).cores_to_feed == 11
    assert dataclasses.replace(ON_CUDA, workers=0).cores_to_feed == 3


def test_the_estimate_counts_epochs_evaluations_and_processes(recipe):
    read = load_recipe(recipe, ["scheduler.num_epochs=90", "run.val_interval=10"])
    # Loaded at 2,000 a second, forwarded at 7,800: 50,000 images take 25 s, nine times and once at the end.
    assert estimate(read, ON_CUDA, 990 * 3600, 0, 50_000) == [
        "time       1.00 hours per epoch of 3,564,000 images",
        f"           {90 + 10 * 25 / 3600:.2f} hours in total: 90 epochs, evaluations included",
    ]
    four = estimate(load_recipe(recipe, ["run.num_processes=4"]), ON_CUDA, 990 * 3600, 100, 100)
    assert four[0] == "time       0.25 hours per epoch of 3,564,000 images, on 4 processes as fast as this one"


def test_the_report_names_setting_rates_and_peak_memory(recipe):
    read = load_recipe(recipe, ["run.compile=true", "data.workers=4"])
    assert describe(read, ON_CUDA, "Some GPU", "bf16") == [
        "speed      test_resnet, cskd, 48×48, batches of 128, precision bf16, compiled\n"
        "           on Some GPU; 16 cores for this process",
        "loader         1,000 images/s   supervised, 2,000 loaded, 4 worker processes",
        "step           2,600 images/s   repeating one batch",
        "together         990 images/s   60 % of the time waiting for data",
        "memory          12.3 GB peak on the device",
    ]
