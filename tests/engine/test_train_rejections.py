"""Runs that cannot start or finish fail in one line: output folders, models, settings, divergence."""

from __future__ import annotations

import json
import os
import socket

import numpy as np
import pytest
from command_runs import (
    fifteen_images,
    metrics_lines,
    quick,
    torchrun,
    write_recipe,
)

images = pytest.fixture(fifteen_images, scope="module")


# The output folder


def test_an_output_folder_that_is_a_file_is_rejected(tmp_path, images):
    (tmp_path / "run").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images))
    assert done.status == 2
    assert done.stderr == f"error: run.output_dir: {tmp_path / 'run'} is a file; name a folder\n"
    assert (tmp_path / "run").read_text() == "mine"


def test_an_output_folder_with_other_files_is_rejected(tmp_path, images):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images))
    assert done.status == 2
    assert "is not empty and holds no run" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path / "run") == ["thesis.txt"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_output_folder_is_rejected(tmp_path, images):
    recipe = write_recipe(tmp_path / "run.yaml", images)
    (tmp_path / "closed").mkdir(mode=0o500)
    done = quick(recipe, f"run.output_dir={tmp_path / 'closed' / 'run'}")
    assert done.status == 2
    assert "cannot be written" in done.stderr


def test_an_output_folder_below_a_file_is_rejected(tmp_path, images):
    (tmp_path / "file").write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images), f"run.output_dir={tmp_path / 'file' / 'run'}")
    assert done.status == 2
    assert "cannot be written" in done.stderr
    assert "Traceback" not in done.stderr


# The model and the settings


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.model_name=resnet81", "error: model.model_name: timm has no 'resnet81'; did you mean resnet"),
        ("model.img_size=48", "error: model.img_size: test_resnet does not take it; leave it out"),
        ("model.num_classes=7", "error: model.num_classes: read 7, but the data has 3; leave it out"),
        ("model.pretrained=true", "error: model.pretrained: the weights of test_resnet could not be loaded ("),
        ("model={model_name: resnet10, pretrained: true}", "error: model.pretrained: "),
    ],
)
def test_a_model_timm_cannot_create_is_rejected_in_one_line_and_nothing_is_written(tmp_path, images, override, message):
    done = quick(write_recipe(tmp_path / "run.yaml", images), override)
    assert done.status == 2
    # Libraries may print warnings first.
    assert done.stderr.splitlines()[-1].startswith(message)
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_pretrained_weights_that_cannot_be_downloaded_are_reported_with_the_fix(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "model.pretrained=true")
    assert done.stderr.splitlines()[-1].endswith(
        "without a network, fill the Hub's cache beforehand or write model.pretrained=false"
    )


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer.opt=adamzz"], "optimizer"),
        (["data.sampling=sqrt", "method={name: pskd}"], "data.sampling: read sqrt, but pskd"),
        *(
            (["data.aug_repeats=3", f"method={{name: {name}}}"], f"data.aug_repeats: read 3, but {name}")
            for name in ("pskd", "dlb")
        ),
        (["data.sampling=class_balanced", "method.logit_adjustment=1.0"], "data.sampling: read class_balanced, which"),
        (["model.model_name=resnet18.foo_in1k"], "model"),
        (["model.model_name=vit_tiny_patch16_224"], "transform.input_size"),
        (["model.global_pool=foo"], "model"),
        (["model.global_pool=''"], "transform.input_size"),
        (["model.model_name=resnet18", "transform.input_size=[3, 32, 32]", "data.batch_size=7"], "data.batch_size"),
    ],
)
def test_a_configuration_that_cannot_train_fails_in_one_line_before_anything_is_written(
    tmp_path, images, overrides, key
):
    done = quick(write_recipe(tmp_path / "run.yaml", images), *overrides)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {key}"), line
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


# Training that diverges


def test_a_non_finite_loss_stops_the_run_and_dumps_the_batch(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "optimizer.lr=1e30")
    assert done.status == 1
    assert done.stderr.count("\n") == 1
    assert "the loss is not finite at step " in done.stderr
    assert "Lower optimizer.lr" in done.stderr
    report = json.loads((tmp_path / "run" / "nonfinite-rank0.json").read_text(encoding="utf-8"))
    assert report["step"] >= 1
    assert not np.isfinite(float(report["terms"]["loss"]))
    assert len(report["batch"]) >= 6  # anchors and partners
    assert all("split 'train', row " in row and ".png" in row for row in report["batch"])
    assert not (tmp_path / "run" / "summary.json").exists()


def test_non_finite_logits_end_the_run_in_one_line(tmp_path, images):
    # The loss of the only update is finite, but the updated weights give non-finite logits.
    done = quick(
        write_recipe(tmp_path / "run.yaml", images),
        "optimizer.lr=1e30",
        "scheduler.num_epochs=1",
        "data.batch_size=15",
    )
    assert done.status == 1
    assert "note: epoch 1: logits of the test split are not finite" in done.stdout
    assert done.stderr.startswith("error: the logits of 9 of 9 images of the test split are not finite: training diver")
    assert done.stderr.count("\n") == 1
    (line,) = metrics_lines(tmp_path / "run")
    assert "test/nll" not in line
    assert not (tmp_path / "run" / "summary.json").exists()


# Launches of several processes


def test_a_process_count_other_than_the_recipes_is_rejected(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), "run.num_processes=2")
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: run.num_processes: read 2, but this run has 1; start 2 with torchrun")
    assert not (tmp_path / "run").exists()


def test_processes_unaware_of_each_other_are_rejected(tmp_path, images):
    done = quick(write_recipe(tmp_path / "run.yaml", images), SLURM_NTASKS="4")
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: srun started 4 processes (SLURM_NTASKS), but each of them would train alone")
    assert not (tmp_path / "run").exists()


def test_a_recipe_mistake_is_printed_by_one_rank_only(tmp_path, images):
    done = torchrun("-m", "cskd_hf.train", write_recipe(tmp_path / "run.yaml", images), "optimizer.lrr=1")
    assert done.status != 0
    assert done.stderr.count("error: command line: optimizer.lrr: unknown key") == 1
    assert "did you mean lr?" in done.stderr
    assert not (tmp_path / "run").exists()


DIFFERENT = """
import os, sys
from cskd_hf import train
from cskd_hf.errors import run_command
override = sys.argv.pop()  # of rank 1
run_command(lambda: train.main(sys.argv[1:] + [override] * int(os.environ["RANK"])))
"""


def test_ranks_with_different_recipes_are_rejected(tmp_path, images):
    (tmp_path / "different.py").write_text(DIFFERENT, encoding="utf-8")
    done = torchrun(tmp_path / "different.py", write_recipe(tmp_path / "run.yaml", images), "run.seed=1")
    assert done.status != 0
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert line.startswith("error: the processes differ in recipe: ")
    assert "process 0 on" in line
    assert "process 1 on" in line
    assert not (tmp_path / "run").exists()


def test_a_mistake_on_one_rank_alone_is_printed_by_it(tmp_path, images):
    (tmp_path / "different.py").write_text(DIFFERENT, encoding="utf-8")
    missing = f"data.dataset={tmp_path / 'missing'}"
    done = torchrun(tmp_path / "different.py", write_recipe(tmp_path / "run.yaml", images), missing)
    assert done.status != 0
    assert done.stderr.count(f"error: process 1 on {socket.gethostname()}: data.dataset: read ") == 1
    assert "[rank0]: Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
