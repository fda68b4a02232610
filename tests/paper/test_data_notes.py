"""Finished runs that are not what a table says, or not alike, are noted below it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from written_runs import some_runs, write_finished

from cskd_hf.paper.cells import data_notes, fill_all
from cskd_hf.paper.experiments import Setup, at_equal_compute
from cskd_hf.paper.find import inspect_run
from cskd_hf.paper.selection import select
from cskd_hf.runs.environment import CHANGES
from cskd_hf.runs.selected import Selected

TWO_RUNS = {"datasets": ["cub200"], "models": ["resnet18"], "methods": ["cskd"], "seeds": [0, 1]}


def notes_of(runs, changes=None):
    """The notes of finished runs, the first with a summary changed by `changes`."""
    states = {key: inspect_run(run) for key, run in runs.items()}
    first = next(iter(runs))
    summary = states[first].summary.model_copy(update=changes or {})
    return data_notes(runs, states | {first: replace(states[first], summary=summary)})


STOPPED = Selected(epoch=9, epochs_trained=12, metric="nll", best_epoch=9, best_value=1.0)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"notes": (f"{CHANGES[0]} 5: optimizer.lr", "another note")}, f"{CHANGES[0]} 5: optimizer.lr"),
        ({"selected": STOPPED}, "stopped early, after 12 of 3 epochs, at a lower cost than the table's"),
        ({"skipped_images": {"train": 1, "test": 4}}, "tested on 5,790 images; cub200 has 5,794"),
    ],
)
def test_a_run_that_is_not_what_the_table_says_is_noted(tmp_path, changes, note):
    runs = some_runs(tmp_path, "table1", **TWO_RUNS)
    for run in runs.values():
        write_finished(run, 33.0)
    assert notes_of(runs) == []
    assert notes_of(runs, changes) == [f"{note}: cub200_resnet18-cskd-seed0"]


def test_other_numbers_of_images_and_another_precision_are_noted(tmp_path):
    runs = some_runs(tmp_path, "table1", **TWO_RUNS)
    first, second = runs.values()
    write_finished(first, 33.0, test_images=100)
    write_finished(second, 33.0, num_processes=4, mixed_precision="no")
    assert notes_of(runs) == [
        "tested on 100 images; cub200 has 5,794: cub200_resnet18-cskd-seed0",
        "trained in bf16, others of the table are not: cub200_resnet18-cskd-seed0",
        "trained with 128 images per update; the shipped recipe has 32: cub200_resnet18-cskd-seed1",
        "trained in float32, others of the table are not: cub200_resnet18-cskd-seed1",
    ]


def test_images_other_than_the_catalogs_are_noted_and_counted(tmp_path):
    chosen = {"datasets": ["icons"], "models": ["test_resnet"], "methods": ["cskd"], "seeds": [0]}
    runs = some_runs(tmp_path, "evidence", **chosen)
    for run in runs.values():
        write_finished(run, 33.0, train_images=690)
    states = {key: inspect_run(run) for key, run in runs.items()}
    names = ", ".join(run.folder.name for run in runs.values())
    assert data_notes(runs, states) == [f"trained on 690 images; icons has 6,838: {names}"]
    blocks = at_equal_compute(select(["evidence"], ["icons"], ["test_resnet"], ["cskd"]), Setup(tmp_path, {}))
    computes = {
        grid.block.budget: cell.training.compute for grid in fill_all(blocks, runs, states) for cell in grid.flat()
    }
    assert computes == {None: pytest.approx(690 * 30 * 4 / 3), 2: pytest.approx(690 * 45 * 4 / 3)}
