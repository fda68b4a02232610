"""What became of the runs behind the paper's tables: finished, begun, of another recipe, unreadable."""

from __future__ import annotations

import json
import shutil

import pytest
from written_runs import CUB, as_trained, one_run, some_runs, write_finished, write_unfinished

from cskd_hf.paper.blocks import select
from cskd_hf.paper.experiments import Setup, runs_of
from cskd_hf.paper.find import find_run
from cskd_hf.recipe.recipe import dump_recipe
from cskd_hf.reproduce import main


def test_a_folder_is_told_by_what_it_holds(tmp_path):
    run = one_run(tmp_path)
    assert find_run(run).describe(run) == "not started"
    run.folder.mkdir()
    assert find_run(run).describe(run) == "not started"
    (run.folder / "lock.json").touch()  # a moment ago
    assert find_run(run).describe(run) == "not started"
    shutil.rmtree(run.folder)
    write_unfinished(run, 37)
    with (run.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"epoch": 37, "tra')  # a kill cut it
    assert find_run(run).describe(run) == "unfinished (37 of 200 epochs)"
    shutil.rmtree(run.folder)
    write_finished(run, 33.0)
    assert find_run(run).describe(run) == "finished"


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_another_recipe_is_named_with_the_keys_that_differ(tmp_path, finished):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("optimizer.lr=0.05",)))
    (other,) = held.values()
    write_finished(other, 33.0) if finished else write_unfinished(other, 3)
    found = find_run(one_run(tmp_path))
    assert (found.status, found.problem) == ("another recipe", "optimizer.lr: 0.05 in the folder, 0.1 expected")
    assert found.summary is None


def test_a_run_on_a_prepared_folder_is_found_by_naming_it(tmp_path, capsys):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {"cub200": "./birds"}))
    write_finished(next(iter(held.values())), 33.0)
    arguments = ["table1", "--datasets", "cub200", "--models", "resnet18", "--methods", "cskd", "--seeds", "0"]
    assert main([*arguments, "--runs", str(tmp_path)]) == 2
    problem = 'data.dataset: "./birds" in the folder, "cub200" expected'
    assert f"another recipe ({problem}); --data says where a set's images lie" in capsys.readouterr().err
    assert main([*arguments, "--runs", str(tmp_path), "--data", "cub200=./birds"]) == 0
    assert "| 33.00 (1) " in capsys.readouterr().out


def test_settings_that_change_no_number_make_no_other_recipe(tmp_path):
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("data.workers=1",)))
    write_finished(next(iter(held.values())), 33.0)
    assert find_run(one_run(tmp_path)).status == "finished"


def test_a_precision_that_is_expected_must_be_the_folders(tmp_path):
    write_finished(one_run(tmp_path), 33.0)  # in bf16
    held = runs_of(select(["table1"], methods=["cskd"], **CUB), [0], Setup(tmp_path, {}, ("run.mixed_precision=no",)))
    found = find_run(next(iter(held.values())))
    assert found.problem == 'run.mixed_precision: "bf16" in the folder, "no" expected'


def test_a_teacher_is_the_same_run_where_the_folder_of_runs_has_moved(tmp_path):
    chosen = {"datasets": ["cub200"], "methods": ["kd"], "seeds": [0]}
    before = some_runs(tmp_path / "scratch", "table4", **chosen)
    for run in before.values():
        write_finished(run, 33.0)
    (tmp_path / "scratch").rename(tmp_path / "runs")
    after = some_runs(tmp_path / "runs", "table4", **chosen)
    assert [find_run(run).status for run in after.values()] == ["finished", "finished"]
    student = list(after.values())[-1]
    text = (student.folder / "recipe.yaml").read_text(encoding="utf-8")
    (student.folder / "recipe.yaml").write_text(text.replace("cskd-seed0", "cskd-seed1"), encoding="utf-8")
    (student.folder / "summary.json").unlink()
    assert "method.teacher" in find_run(student).problem


def _cut(run):
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
    ("spoil", "named"),
    [
        (_cut, "summary.json: Invalid JSON"),
        (_drop_metric, "summary.json: metrics.last.ece: Field required"),
        (_not_a_number, "summary.json: "),
        (_edit_recipe, "recipe_hash is"),
        (_newer_recipe, "horizon: no such section"),
        (_no_recipe, "no recipe.yaml"),
    ],
)
def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path, capsys, spoil, named):
    runs = some_runs(tmp_path, "table1", methods=["cskd"], seeds=[0, 1], **CUB)
    for run in runs.values():
        write_finished(run, 33.0)
    bad, _ = runs.values()
    spoil(bad)
    arguments = ["table1", "--runs", str(tmp_path), "--methods", "cskd", "--seeds", "0", "1"]
    assert main([*arguments, "--datasets", "cub200", "--models", "resnet18"]) == 2
    stdout, stderr = capsys.readouterr()
    assert "| 33.00 (1) " in stdout
    (line,) = stderr.splitlines()
    assert line.startswith(f"error: {bad.folder}: left out: unreadable (")
    assert named in line
