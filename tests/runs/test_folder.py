from __future__ import annotations

import os

import pytest
from command_runs import tree
from saved_checkpoints import save
from summaries import IMAGES, SUMMARY, make_recipe, start

from cskd_hf.errors import UserError
from cskd_hf.runs.folder import append_metrics, cut_metrics, open_run, read_metrics
from cskd_hf.runs.progress import Progress, Stopwatch
from cskd_hf.runs.summary import write_summary


def test_a_new_or_empty_folder_gets_the_recipe_and_the_environment(tmp_path):
    folder = tmp_path / "deep" / "run"
    recipe = make_recipe(folder)
    assert start(recipe, 4) == (folder, None, False)
    assert sorted(os.listdir(folder)) == ["environment.json", "recipe.yaml", "run.lock"]
    assert start(recipe, 1) == (folder, None, False)  # restarted before the first checkpoint
    (tmp_path / "empty").mkdir()
    assert start(make_recipe(tmp_path / "empty"), 1)[0] == tmp_path / "empty"


@pytest.mark.parametrize("content", ["data: 7", "[", "data: {dataset: digits, colour: red}", ""])
def test_an_unreadable_recipe_in_the_folder_counts_as_another(tmp_path, content):
    (tmp_path / "recipe.yaml").write_text(content)
    with pytest.raises(UserError, match=r"recipe\.yaml cannot be read by this version"):
        start(make_recipe(tmp_path), 1)
    assert os.listdir(tmp_path) == ["recipe.yaml"]
    assert (tmp_path / "recipe.yaml").read_text() == content


def test_every_difference_of_another_recipe_is_listed_once_there_is_a_checkpoint(tmp_path):
    start(make_recipe(tmp_path), 1)
    other = make_recipe(tmp_path).replace(optimizer={"lr": 0.2}, run={"seed": 3, "logging_steps": 7})
    assert start(other, 1) == (tmp_path, None, False)
    save(tmp_path / "checkpoints", 5)
    with pytest.raises(UserError) as caught:
        start(make_recipe(tmp_path), 1)
    assert str(caught.value).splitlines()[1:] == [
        "optimizer.lr: 0.2 in the folder, 0.1 expected",
        "run.seed: 3 in the folder, 0 expected",
    ]


def test_a_forced_resume_of_a_finished_run_keeps_its_summary_until_it_ends(tmp_path):
    start(make_recipe(tmp_path))
    write_summary(tmp_path, SUMMARY)
    finished = (tmp_path / "summary.json").read_bytes()
    assert start(make_recipe(tmp_path)) == (tmp_path, None, True)
    changed = make_recipe(tmp_path).replace(optimizer={"lr": 0.2}, run={"resume": "force"})
    before = tree(tmp_path)
    open_run(changed, IMAGES)
    assert tree(tmp_path) == before  # the checkpoint may not fit
    for resume in ("force", "auto"):  # killed immediately, and again
        assert start(changed.replace(run={"resume": resume})) == (tmp_path, None, False)
        assert not (tmp_path / "summary.json").exists()
        assert (tmp_path / "summary.previous.json").read_bytes() == finished
    write_summary(tmp_path, SUMMARY)
    assert not (tmp_path / "summary.previous.json").exists()


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_images_are_rejected_unless_forced_and_named_with_what_differs(tmp_path, is_finished):
    start(make_recipe(tmp_path))
    save(tmp_path / "checkpoints", 5)
    if is_finished:
        (tmp_path / "summary.json").write_text("{}")
    other = {"train": IMAGES["train"] | {"images": 151, "labels": "abcd"}, "holdout": {"images": 9}}
    before = tree(tmp_path)
    with pytest.raises(UserError) as caught:
        start(make_recipe(tmp_path), images=other)
    assert str(caught.value).splitlines() == [
        f"run.output_dir: {tmp_path} holds a run of other images; name another folder, or set run.resume=force to "
        "continue that run with these images",
        "train images: 150 in the folder, 151 expected; what differs: the number of images, labels",
        "test images: 1,297 in the folder, 0 expected; what differs: the number of images, labels",
        "holdout images: 0 in the folder, 9 expected; what differs: the number of images",
    ]
    assert tree(tmp_path) == before
    forced = open_run(make_recipe(tmp_path, resume="force"), other)
    assert forced == (tmp_path, tmp_path / "checkpoints" / "step-00000005", False, True)


def test_the_same_images_in_another_folder_are_the_same_run(tmp_path):
    start(make_recipe(tmp_path))
    save(tmp_path / "checkpoints", 5)
    moved = make_recipe(tmp_path).replace(data={"dataset": "elsewhere"})
    assert start(moved)[1] == tmp_path / "checkpoints" / "step-00000005"
    with pytest.raises(UserError, match=r"another recipe.*\ndata.dataset: \"elsewhere\" in the folder"):
        start(make_recipe(tmp_path), images={})


def test_metrics_are_rounded_to_nine_digits(tmp_path):
    lines = [{"epoch": 0, "step": 123_456_789_012, "a": 1 / 3}, {"epoch": 1, "step": 2, "a": 1e-20}]
    for line in lines:
        append_metrics(tmp_path, line)
    assert read_metrics(tmp_path) == [{"epoch": 0, "step": 123_456_789_012, "a": 0.333333333}, lines[1]]


def test_cutting_drops_later_epochs_and_a_truncated_line(tmp_path):
    cut_metrics(tmp_path, 3)
    assert os.listdir(tmp_path) == []
    for epoch in range(4):
        append_metrics(tmp_path, {"epoch": epoch})
    before = (tmp_path / "metrics.jsonl").read_text()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 1, "st')  # a kill
    cut_metrics(tmp_path, 9)
    assert (tmp_path / "metrics.jsonl").read_text() == before
    cut_metrics(tmp_path, 2)
    assert [line["epoch"] for line in read_metrics(tmp_path)] == [0, 1]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_a_lap_counts_from_the_one_before():
    progress = Progress(samples=100, seconds=10.0, wait_seconds=9.0)
    watch = Stopwatch(progress)
    progress.samples, progress.seconds, progress.wait_seconds = 160, 12.0, 9.5
    assert watch.lap(progress) == {"images_per_second": 30.0, "data_wait_share": 0.25, "seconds": 2.0}
    progress.samples, progress.seconds = 170, 13.0
    assert watch.lap(progress) == {"images_per_second": 10.0, "data_wait_share": 0.0, "seconds": 1.0}
