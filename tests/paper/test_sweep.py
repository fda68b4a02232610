"""Grids of settings: what varies, the runs, and the table on hold-out images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_runs import draw_folder, write_recipe
from summaries import SUMMARY

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run
from cskd_hf.paper.find import RunState
from cskd_hf.paper.sweep import grid_of, markdown, notes, sweep_runs, table
from cskd_hf.reproduce import main
from cskd_hf.runs.selected import Selected

GRID = ["optimizer.lr=0.05,0.1", "method.distill_loss_weight=1,3", "model.model_name=test_resnet"]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("optimizer.lr=0.1, 0.2", ["0.1", "0.2"]),
        ("transform.input_size=[3,32,32]", None),
        ("transform.input_size=[3,32,32],[3,64,64]", ["[3,32,32]", "[3,64,64]"]),
        (
            "method={name: cskd, temperature: 4},{name: cross_entropy}",
            ["{name: cskd, temperature: 4}", "{name: cross_entropy}"],
        ),
        ("data.dataset='a,b'", None),
        ("data.dataset='a,b',c", ["'a,b'", "c"]),
        ("transform.input_size=[3,32", None),  # the recipe reports it
        ("run.report_to=", None),
    ],
)
def test_commas_outside_of_brackets_and_quotes_separate_values(override, values):
    fixed, grid = grid_of([override])
    if values is None:
        assert (fixed, grid) == ([override], {})
    else:
        assert (fixed, list(grid.values())) == ([], [values])


def test_every_point_has_a_run_for_each_seed_and_its_own_settings(tmp_path):
    runs = sweep_runs("digits_resnet10", GRID, [0, 3], tmp_path)
    points = [(lr, weight) for lr in (0.05, 0.1) for weight in (1.0, 3.0)]
    found = [
        (run.expected.run.seed, run.expected.optimizer.lr, run.expected.method.distill_loss_weight)
        for run in runs.values()
    ]
    assert found == [(seed, *point) for seed in (0, 3) for point in points]
    assert {run.expected.model.model_name for run in runs.values()} == {"test_resnet"}
    names = [run.folder.name for run in runs.values()]
    assert names[:2] == [f"digits_resnet10-lr=0.05,distill_loss_weight={weight}-seed0" for weight in (1, 3)]


def test_the_folders_of_a_sweep_of_methods_name_them(tmp_path):
    methods = "method={name: cskd, temperature: 4.0},{name: cross_entropy}"
    names = [run.folder.name for run in sweep_runs("digits_resnet10", [methods], [0], tmp_path).values()]
    assert names == [
        "digits_resnet10-method=_name_cskd,_temperature_4.0_-seed0",
        "digits_resnet10-method=_name_cross_entropy_-seed0",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.1"], "sweep: nothing varies; write several values, such as optimizer.lr=0.05,0.1"),
        (
            ["optimizer.lr=0.1,,0.2"],
            r"optimizer.lr=0.1,,0.2: a value is empty or occurs twice; write optimizer.lr=A,B,…",
        ),
        (["optimizer.lr=0.1,0.1"], r"optimizer.lr=0.1,0.1: a value is empty or occurs twice"),
        (["optimizer.lr=0.1,0.2", "optimizer.lr=0.3,0.4"], "optimizer.lr=0.1,0.2: optimizer.lr is given twice; write"),
        (["optimizer.lr=0.1,0.2", "optimizer.lr =0.3"], "optimizer.lr=0.1,0.2: optimizer.lr is given twice; write"),
        (["optimizer.lr=0.1,1e-1"], "sweep: optimizer.lr=0.1 and optimizer.lr=1e-1 train the same; leave one out"),
        (["data.workers=0,1"], "sweep: data.workers=0 and data.workers=1 train the same; leave one out"),
        (["optimizer.lr=0.1,-1"], r"command line: optimizer.lr: read -1; allowed"),
        (["data.holdout=0.1,0"], r"data.holdout: none, and a sweep compares on hold-out images"),
        (["data.dataset=a/b,a_b", "data.holdout=0.1"], r"sweep: the values make no distinct, short names of folders"),
        (["run.seed=1,2"], r"run.seed=1,2: cannot be set for all runs of a sweep; use --seeds"),
    ],
)
def test_a_wrong_grid_is_rejected_in_one_line(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        main(["sweep", "digits_resnet10", *overrides, "--runs", str(tmp_path)])
    assert str(error.value).startswith(message)
    assert list(tmp_path.iterdir()) == []


def write_epochs(run: Run, errors: list[float], **changes: Any) -> RunState:
    """metrics.jsonl with these errors on the hold-out set, of a finished run of as many epochs."""
    run.folder.mkdir(exist_ok=True)
    lines = [{"epoch": epoch, "holdout/top1_error": error} for epoch, error in enumerate(errors)]
    lines = [line | {"holdout/nll": 50 - line["holdout/top1_error"], "holdout/ece": 5.0} for line in lines]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = SUMMARY.model_copy(update={"epochs": len(errors), **changes})
    return RunState("finished", recipe=run.expected, summary=summary)


def test_rows_are_ordered_by_the_metric_and_ties_are_named(tmp_path):
    runs = sweep_runs("digits_resnet10", ["optimizer.lr=1,2,3,4"], [0, 1], tmp_path)
    errors = {"1": (30, 32), "2": (20, 21), "3": (20.5, 22), "4": ()}
    states = {}
    for key, run in runs.items():
        values = errors[key.method.removeprefix("optimizer.lr=")]
        states[key] = RunState("not started")
        if values:
            states[key] = write_epochs(run, [99.0, 98.0, values[key.seed]])
    rows = table(runs, states, "top1_error")
    assert [(row["point"][-1], row["n"]) for row in rows] == [("2", 2), ("3", 2), ("1", 2), ("4", 0)]
    assert (rows[0]["top1_error"].mean, rows[0]["nll"].mean) == (20.5, 29.5)
    text = markdown("digits_resnet10", rows, "top1_error")
    assert "| `optimizer.lr=2` | 20.50 ± 0.71   | 29.500 ± 0.707 | 5.00 ± 0.00 | 2 |" in text
    assert (
        "Best by Top-1 error: `optimizer.lr=2`.\nNot behind it by more than the joint spread: `optimizer.lr=3`." in text
    )
    assert [row["point"][-1] for row in table(runs, states, "nll")] == ["1", "3", "2", "4"]


def test_rows_are_of_the_epoch_that_each_run_selected(tmp_path):
    selections = ["run.selection=last,best_holdout", "run.selection_metric=nll"]
    runs = sweep_runs("digits_resnet10", selections, [0], tmp_path)
    last, best = runs
    selected = Selected(epoch=2, epochs_trained=3, metric="nll", best_epoch=2, best_value=30.0)
    states = {
        last: write_epochs(runs[last], [30.0, 20.0, 25.0]),
        best: write_epochs(runs[best], [30.0, 20.0, 25.0], selection="best_holdout", selected=selected),
    }
    rows = table(runs, states, "top1_error")
    assert [(row["point"], row["top1_error"].mean) for row in rows] == [
        ("run.selection=best_holdout", 20.0),
        ("run.selection=last", 25.0),
    ]
    text = markdown("digits_resnet10", rows, "top1_error")
    assert "On hold-out images, epoch with the best hold-out NLL or last epoch; mean ± " in text
    assert "do not compare them with those of a last epoch" in text
    assert "Best by Top-1 error: `run.selection=best_holdout`.\nWith n = 1 the spread is not known; add --seeds" in text


def test_changes_at_a_resume_other_hold_out_images_and_processes_are_noted(tmp_path):
    runs = sweep_runs("digits_resnet10", ["data.holdout=0.1,0.2"], [0], tmp_path)
    first, second = runs
    change = "settings changed at step 5: optimizer.lr; earlier updates had others"
    dataset = SUMMARY.dataset.model_copy(update={"images": {"train": 1, "holdout": 7, "test": 1}})
    throughput = SUMMARY.throughput.model_copy(update={"num_processes": 1})
    states = {
        first: write_epochs(runs[first], [30.0], notes=(change, "an empty class")),
        second: write_epochs(runs[second], [20.0], dataset=dataset, throughput=throughput),
    }
    expected = [
        f"{runs[first].folder.name}: {change}",
        "rows of different hold-out images are not comparable: "
        "5,000 with `data.holdout=0.1`, 7 with `data.holdout=0.2`",
        "rows of different numbers of processes are not comparable: "
        "8 with `data.holdout=0.1`, 1 with `data.holdout=0.2`",
    ]
    assert notes(runs, states) == expected
    text = markdown("digits_resnet10", table(runs, states, "nll"), "nll", expected)
    assert text.endswith(f"Note: {expected[0]}.\n\nNote: {expected[1]}.\n\nNote: {expected[2]}.\n")
    assert notes({first: runs[first]}, {first: write_epochs(runs[first], [30.0])}) == []


def own_sweep(folder: Path) -> list[str]:
    images = draw_folder(folder / "images", {"train": (20, 20), "test": (2, 2)})
    recipe = write_recipe(folder / "run.yaml", images)
    return ["sweep", str(recipe), "optimizer.lr=0.01,0.02", "data.holdout=0.1", "--runs", str(folder / "runs")]


def test_a_sweep_on_own_images_is_planned_by_counting_them(tmp_path, capsys):
    sweep = own_sweep(tmp_path)
    assert main([*sweep, "--plan"]) == 0
    assert "2 runs; 0 of 2 finished" in capsys.readouterr().out
    assert {run.size for run in sweep_runs(*sweep[1:2], sweep[2:4], [0], tmp_path).values()} == {(2, 36, 4, 4)}


@pytest.mark.slow
def test_a_sweep_trains_its_points_once_and_tabulates_them(tmp_path, capsys):
    sweep = own_sweep(tmp_path)
    assert main([*sweep, "--run"]) == 0
    assert capsys.readouterr().out.count("| 1 |") == 2
    assert main([*sweep, "--commands"]) == 0
    assert capsys.readouterr().out == ""  # nothing is missing
