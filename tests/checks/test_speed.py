"""`check --speed`: what it measures with, and what it makes of the numbers."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from command_runs import command, draw_folder, write_recipe

from cskd_hf import check
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


# the command


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("data.workers=2", "run.gradient_accumulation_steps=2"),
        ("method={name: cskd_e}", "data.workers=1", "run.grad_checkpointing=true"),
        ("method={name: cross_entropy}", "data.holdout=0.3", "optimizer.opt=adamw"),
    ],
)
def test_loader_and_step_are_measured_with_what_training_uses(recipe, settings, capsys, tmp_path):
    assert speed.check_speed(load_recipe(recipe, settings), seconds=0.8) == 0
    told = capsys.readouterr().out
    for name in ("loader", "step", "together"):
        assert re.search(rf"^{name} {NUMBER} images/s  ", told, flags=re.MULTILINE), told
    assert "test_resnet, " in told
    assert re.search(rf"^time {NUMBER} seconds an epoch of [69] images$", told, flags=re.MULTILINE)
    assert re.search(rf"^ {NUMBER} (seconds|hours) in all: 2 epochs", told, flags=re.MULTILINE)
    assert len(told.splitlines()) < 24
    assert max(map(len, told.splitlines())) <= 120
    assert not (tmp_path / "run").exists()


def test_the_flag_of_the_command_measures(recipe):
    done = command(recipe, "--speed", "--seconds", 2, module="cskd_hf.check")
    assert done.status == 0, done.stderr
    assert re.search(r"^limit +the (step|loader)", done.stdout, flags=re.MULTILINE)


def test_the_two_kinds_of_check_are_not_mixed(recipe, capsys):
    with pytest.raises(SystemExit, match="2"):
        check.main([str(recipe), "--speed", "--full"])
    assert "--full: not allowed with argument --speed" in capsys.readouterr().err


def test_what_training_would_refuse_is_refused_here(recipe, tmp_path):
    with pytest.raises(UserError, match=r"^model\.model_name: timm has no"):
        speed.check_speed(load_recipe(recipe, ["model.model_name=resnet8"]))
    with pytest.raises(UserError, match=r"^data\.batch_size: an epoch's last batch leaves 1 "):
        speed.check_speed(load_recipe(recipe, ["data.batch_size=1", "transform.input_size=[3, 8, 8]"]))
    (tmp_path / "images" / "train" / "class 1" / "02.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"split 'train', row 7.*unreadable image"):
        speed.check_speed(load_recipe(recipe), seconds=0.8)


def test_one_of_several_processes_does_not_measure(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="without a launcher"):
        speed.check_speed(load_recipe(recipe))


# what is made of the numbers


def test_a_device_that_waits_is_told_how_many_workers_would_feed_it():
    lines = advise(ON_CUDA)
    assert lines == [
        "limit      the loader: the step is 2.6 times as fast",
        "workers    data.workers=11, each on a core of its own, would feed the device",  # 250 images a core
    ]


def test_where_the_cores_do_not_suffice_a_smaller_copy_is_named():
    lines = "\n".join(advise(dataclasses.replace(ON_CUDA, cores=8)))
    assert "data.workers=11," in lines
    assert "this process may use 8." in lines
    assert "scripts/resize_dataset.py" in lines


def test_more_workers_than_cores_count_as_the_cores():
    assert dataclasses.replace(ON_CUDA, workers=32, loader=4000.0).cores_to_feed == 11
    assert dataclasses.replace(ON_CUDA, workers=0).cores_to_feed == 3


def test_a_loader_that_waits_is_told_how_few_would_do():
    assert advise(dataclasses.replace(ON_CUDA, workers=16, loader=5200.0)) == [
        "limit      the step: the loader is 2.0 times as fast",
        "workers    data.workers=8 would feed the device",
    ]


def test_on_a_cpu_the_two_share_the_cores():
    # An image takes 2 / 500 s of a core to load and 2 / 125 s to train: one part in five.
    both = dataclasses.replace(ON_CUDA, workers=4, cores=2, threads=2, loader=500.0, step=125.0)
    limit, workers = advise(both)
    assert limit == "limit      the step. Both share 2 cores: of the work of an image, loading is 20 %, the step 80 %"
    assert workers == "workers    a device of this step's speed is fed by 1 core"
    assert advise(dataclasses.replace(both, step=4000.0))[0].startswith("limit      the loader. ")


def test_hours_count_epochs_evaluations_and_processes(recipe):
    read = load_recipe(recipe, ["scheduler.num_epochs=90", "run.val_interval=10"])
    # Loaded at 2,000 a second, forwarded at 7,800: 50,000 images take 25 s, nine times and once at the end.
    assert estimate(read, ON_CUDA, 990 * 3600, None, 50_000) == [
        "time       1.00 hours an epoch of 3,564,000 images",
        f"           {90 + 10 * 25 / 3600:.2f} hours in all: 90 epochs, evaluations included",
    ]
    four = estimate(load_recipe(recipe, ["run.num_processes=4"]), ON_CUDA, 990 * 3600, 100, 100)
    assert four[0] == "time       0.25 hours an epoch of 3,564,000 images, on 4 processes as fast as this one"


def test_the_screen_says_what_was_measured(recipe):
    read = load_recipe(recipe, ["run.compile=true", "data.workers=4"])
    assert describe(read, ON_CUDA, "Some GPU", "bf16") == [
        "speed      test_resnet, cskd, 48×48, batches of 128, precision bf16, compiled",
        "           on Some GPU; 16 cores for this process",
        "loader         1,000 images/s   supervised, 2,000 loaded, by 4 processes",
        "step           2,600 images/s   one batch again and again",
        "together         990 images/s   waiting for data 60 % of the time",
        "memory          12.3 GB on the device at the peak",
    ]
