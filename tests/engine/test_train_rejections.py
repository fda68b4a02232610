"""Runs that cannot start or finish fail in one line: output folders, models, settings, divergence."""

from __future__ import annotations

import json
import os
import re
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


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("file", "is a file; name a folder"),
        ("file/run", "cannot be written: "),
        ("full", "is not empty and holds no run"),
        ("/proc/run", "cannot be written: "),  # even for root
    ],
)
def test_an_output_folder_that_cannot_be_used_is_rejected_and_left_as_it_is(tmp_path, images, output, message):
    (tmp_path / "full").mkdir()
    for file in (tmp_path / "file", tmp_path / "full" / "thesis.txt"):
        file.write_text("mine")
    done = quick(write_recipe(tmp_path / "run.yaml", images), f"run.output_dir={tmp_path / output}")
    assert done.status == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: run.output_dir: {tmp_path / output} {message}")
    assert sorted(os.listdir(tmp_path)) == ["file", "full", "run.yaml"]
    assert os.listdir(tmp_path / "full") == ["thesis.txt"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.model_name=resnet81"], "model.model_name: timm has no 'resnet81'; did you mean resnet"),
        (["model.img_size=48"], "model.img_size: test_resnet does not take it; leave it out$"),
        (["model.num_classes=7"], "model.num_classes: read 7, but the data has 3; leave it out$"),
        (
            ["model.pretrained=true"],
            r"model.pretrained: the weights of test_resnet could not be loaded \(.*without a network, fill the Hub's "
            "cache beforehand or write model.pretrained=false$",
        ),
        (["model={model_name: resnet10, pretrained: true}"], "model.pretrained: "),
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
        (["run.num_processes=2"], "run.num_processes: read 2, but this run has 1; start 2 with torchrun"),
    ],
)
def test_a_configuration_that_cannot_train_fails_in_one_line_before_anything_is_written(
    tmp_path, images, overrides, message
):
    done = quick(write_recipe(tmp_path / "run.yaml", images), *overrides)
    assert done.status == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(f"error: {message}", line), line
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == ["run.yaml"]


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
