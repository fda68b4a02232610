from __future__ import annotations

import json
import os

import pytest

from cskd_hf.errors import UserError
from cskd_hf.recipe.recipe import Recipe, parse_recipe
from cskd_hf.runs.folder import append_metrics, cut_metrics, read_metrics, start
from cskd_hf.runs.progress import Progress, Stopwatch


def a_recipe(folder, **run) -> Recipe:
    return parse_recipe(
        {
            "data": {"dataset": "digits"},
            "model": {"model_name": "test_resnet"},
            "method": {"name": "cskd"},
            "optimizer": {"lr": 0.1},
            "scheduler": {"num_epochs": 2},
            "run": {"output_dir": str(folder), **run},
        }
    )


def test_a_new_folder_gets_the_recipe_and_the_environment(tmp_path):
    recipe = a_recipe(tmp_path / "deep" / "run")
    assert start(recipe, 4) == (tmp_path / "deep" / "run", None, False)
    folder = tmp_path / "deep" / "run"
    assert sorted(os.listdir(folder)) == ["environment.json", "lock.json", "recipe.yaml"]
    assert json.loads((folder / "environment.json").read_text())["num_processes"] == 4
    assert start(recipe, 1) == (folder, None, False)  # the same again, before any checkpoint


def test_an_empty_folder_is_taken(tmp_path):
    assert start(a_recipe(tmp_path), 1)[0] == tmp_path
    assert (tmp_path / "recipe.yaml").is_file()


@pytest.mark.parametrize("content", ["data: 7", "[", "data: {dataset: digits, colour: red}", ""])
def test_a_recipe_in_the_folder_that_cannot_be_read_is_a_difference(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be read by this version"):
        start(a_recipe(tmp_path), 1)
    assert os.listdir(tmp_path) == ["recipe.yaml"]
    assert (tmp_path / "recipe.yaml").read_text() == content


def test_every_difference_of_another_recipe_is_listed(tmp_path):
    start(a_recipe(tmp_path), 1)
    other = a_recipe(tmp_path).replace(optimizer={"lr": 0.2}, run={"seed": 3, "logging_steps": 7})
    with pytest.raises(UserError) as caught:
        start(other, 1)
    assert str(caught.value).splitlines()[1:] == [
        "optimizer.lr: 0.1 in the folder, 0.2 expected",
        "run.seed: 0 in the folder, 3 expected",
    ]


def test_metrics_read_back_as_written_but_for_digits_beyond_nine(tmp_path):
    lines = [{"epoch": 0, "step": 123_456_789_012, "a": 1 / 3}, {"epoch": 1, "step": 2, "a": 1e-20}]
    for line in lines:
        append_metrics(tmp_path, line)
    assert read_metrics(tmp_path) == [{"epoch": 0, "step": 123_456_789_012, "a": 0.333333333}, lines[1]]


def test_cutting_keeps_the_epochs_before_and_nothing_half_written(tmp_path):
    cut_metrics(tmp_path, 3)  # none yet
    assert os.listdir(tmp_path) == []
    for epoch in range(4):
        append_metrics(tmp_path, {"epoch": epoch})
    before = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')  # a kill
    cut_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    cut_metrics(tmp_path, 2)
    assert read_metrics(tmp_path) == [{"epoch": 0}, {"epoch": 1}]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_lap_counts_from_the_one_before():
    progress = Progress(samples=100, seconds=10.0, wait_seconds=9.0)
    watch = Stopwatch(progress)
    progress.samples, progress.seconds, progress.wait_seconds = 160, 12.0, 9.5
    assert watch.lap(progress) == {"images_per_second": 30.0, "data_wait_share": 0.25, "seconds": 2.0}
    progress.samples, progress.seconds = 170, 13.0
    assert watch.lap(progress) == {"images_per_second": 10.0, "data_wait_share": 0.0, "seconds": 1.0}


def test_a_forced_resume_of_a_finished_run_is_unfinished_until_it_ends(tmp_path):
    start(a_recipe(tmp_path), 1)
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "report.html").write_text("")
    assert start(a_recipe(tmp_path), 1) == (tmp_path, None, True)
    changed = a_recipe(tmp_path).replace(optimizer={"lr": 0.2}, run={"resume": "force"})
    assert start(changed, 1) == (tmp_path, None, False)
    assert not (tmp_path / "summary.json").exists()
    assert start(changed.replace(run={"resume": "auto"}), 1) == (tmp_path, None, False)  # killed at once
