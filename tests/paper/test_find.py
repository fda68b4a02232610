"""The state of the runs behind the paper's tables: finished, unfinished, of another recipe, unreadable."""

from __future__ import annotations

import json
import shutil

import pytest
from written_runs import CUB, ONE_RUN, as_trained, one_run, some_runs, write_finished, write_unfinished

from cskd_hf.data.splits import load_images
from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import RunState, inspect_run
from cskd_hf.paper.plan import Rate, device_hours
from cskd_hf.recipe.recipe import dump_recipe, load_recipe
from cskd_hf.recipe.resolve import resolve
from cskd_hf.reproduce import main


def test_the_state_follows_from_the_folders_files(tmp_path):
    run = one_run(tmp_path)
    assert inspect_run(run).describe(run) == "not started"
    run.folder.mkdir()
    assert inspect_run(run).describe(run) == "not started"
    (run.folder / "run.lock").touch()  # just started
    assert inspect_run(run).describe(run) == "not started"
    shutil.rmtree(run.folder)
    write_unfinished(run, 37)
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 37, "tra')  # truncated by a kill
    assert inspect_run(run).describe(run) == "unfinished (37 of 200 epochs)"
    shutil.rmtree(run.folder)
    write_finished(run, 33.0)
    assert inspect_run(run).describe(run) == "finished"


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_recipe_names_the_keys_that_differ(tmp_path, finished):
    other = one_run(tmp_path, overrides=["optimizer.lr=0.05"])
    write_finished(other, 33.0) if finished else write_unfinished(other, 3)
    state = inspect_run(one_run(tmp_path))
    assert (state.status, state.problem) == ("another recipe", "optimizer.lr: 0.05 in the folder, 0.1 expected")
    assert state.summary is None


def test_a_folder_without_results_takes_any_recipe_as_in_training(tmp_path):
    other = one_run(tmp_path, overrides=["optimizer.lr=0.05"])
    write_unfinished(other, 3)
    (other.folder / "environment.json").write_text("{}")
    (other.folder / "metrics.jsonl").unlink()
    run = one_run(tmp_path)
    assert inspect_run(run).trainable
    assert inspect_run(run).describe(run) == "unfinished (0 of 200 epochs)"


def test_a_run_on_a_prepared_folder_counts_once_data_names_it(tmp_path, capsys):
    write_finished(one_run(tmp_path, data="./birds"), 33.0)
    assert main([*ONE_RUN, "--runs", str(tmp_path)]) == 2
    problem = 'data.dataset: "./birds" in the folder, "cub200" expected'
    assert f"another recipe ({problem}); --data NAME=FOLDER sets" in capsys.readouterr().err
    assert main([*ONE_RUN, "--runs", str(tmp_path), "--data", "cub200=./birds"]) == 0
    assert "| 33.00 (1) " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ([], (10, 200, 300, 1297)),
        (["data.holdout=0.1"], (10, 180, 20, 1297)),
        (["data.test_split=0.2", "data.holdout=0.25"], (10, 120, 40, 40)),
    ],
)
def test_the_images_of_a_run_are_those_of_its_splits_and_shares(tmp_path, overrides, size):
    recipe = resolve(load_recipe("recipes/digits_resnet10.yaml", overrides))
    run = Run(RunKey("digits", "resnet10", "cskd", 0), "", (), tmp_path, recipe, 1, None)
    images = load_images(recipe.data)
    assert run.size == size == (10, len(images.train), len(images.holdout or ()), len(images.test))
    assert device_hours(run, RunState("not started"), Rate(1.0, "")) * 3600 == pytest.approx(
        size[1] * recipe.scheduler.total_epochs
        + (size[2] * (recipe.scheduler.total_epochs // recipe.run.val_interval + 1) + size[3]) / 3
    )


def test_settings_that_do_not_affect_results_may_differ(tmp_path):
    write_finished(one_run(tmp_path, overrides=["data.workers=1"]), 33.0)
    assert inspect_run(one_run(tmp_path)).status == "finished"


def test_an_explicit_precision_must_match_the_folders(tmp_path):
    write_finished(one_run(tmp_path), 33.0)  # in bf16
    state = inspect_run(one_run(tmp_path, overrides=["run.mixed_precision=no"]))
    assert state.problem == 'run.mixed_precision: "bf16" in the folder, "no" expected'


def test_the_runs_folder_may_move_without_changing_the_teacher(tmp_path):
    chosen = {"datasets": ["cub200"], "methods": ["kd"], "seeds": [0]}
    for run in some_runs(tmp_path / "scratch", "table4", **chosen).values():
        write_finished(run, 33.0)
    (tmp_path / "scratch").rename(tmp_path / "runs")
    moved = some_runs(tmp_path / "runs", "table4", **chosen)
    assert [inspect_run(run).status for run in moved.values()] == ["finished", "finished"]
    student = list(moved.values())[-1]
    text = (student.folder / "recipe.yaml").read_text(encoding="utf-8")
    (student.folder / "recipe.yaml").write_text(text.replace("cskd-seed0", "cskd-seed1"), encoding="utf-8")
    (student.folder / "summary.json").unlink()
    assert "method.teacher" in inspect_run(student).problem


def _truncate(run):
    text = (run.folder / "summary.json").read_text(encoding="utf-8")
    (run.folder / "summary.json").write_text(text[:100], encoding="utf-8")


def _drop_metric(run):
    summary = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    del summary["metrics"]["last"]["ece"]
    (run.folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")


def _not_a_number(run):
    text = (run.folder / "summary.json").read_text(encoding="utf-8")
    (run.folder / "summary.json").write_text(text.replace('"top1_error": 33.0', '"top1_error": NaN'), encoding="utf-8")


def _edit_recipe(run):
    dump_recipe(as_trained(run).replace(optimizer={"lr": 0.2}), run.folder / "recipe.yaml")


def _newer_recipe(run):
    with (run.folder / "recipe.yaml").open("a", encoding="utf-8") as file:
        file.write("horizon: {depth: 3}\n")


def _no_recipe(run):
    (run.folder / "recipe.yaml").unlink()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_truncate, "summary.json: Invalid JSON"),
        (_drop_metric, "summary.json: metrics.last.ece: Field required"),
        (_not_a_number, "summary.json: "),
        (_edit_recipe, "recipe_hash is"),
        (_newer_recipe, "horizon: no such section"),
        (_no_recipe, "no recipe.yaml"),
    ],
)
def test_an_unreadable_folder_is_reported_and_the_rest_is_shown(tmp_path, capsys, spoil, problem):
    runs = some_runs(tmp_path, "table1", methods=["cskd"], seeds=[0, 1], **CUB)
    for run in runs.values():
        write_finished(run, 33.0)
    bad, _ = runs.values()
    spoil(bad)
    assert main([*ONE_RUN, "1", "--runs", str(tmp_path)]) == 2
    stdout, stderr = capsys.readouterr()
    assert "| 33.00 (1) " in stdout
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: {bad.folder}: skipped: unreadable (")
    assert problem in line
