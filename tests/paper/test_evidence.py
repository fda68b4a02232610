"""Our own tables: equal epochs and equal training compute, strong regularisation, one table for each image set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from written_runs import write_finished

from cskd_hf.paper.blocks import Block, RunKey
from cskd_hf.paper.cells import fill_all
from cskd_hf.paper.experiments import Run, Setup, at_equal_compute, runs_of
from cskd_hf.paper.find import inspect_run
from cskd_hf.paper.markdown import markdown
from cskd_hf.paper.rows import STRONG_ROWS, row_of
from cskd_hf.paper.selection import select

FASHION = ("fashion_mnist_1k", "test_resnet")


def planned(
    root: Path, table: str, *overrides: str, seeds: tuple[int, ...] = (0,), **chosen: Any
) -> tuple[list[Block], dict[RunKey, Run]]:
    setup = Setup(root, {}, overrides)
    blocks = at_equal_compute(select([table], **({"datasets": ["fashion_mnist_1k"]} | chosen)), setup)
    return blocks, runs_of(blocks, seeds, setup)


def test_at_equal_compute_a_method_trains_for_as_many_epochs_as_its_cost_allows():
    _, runs = planned(Path("R"), "evidence", "scheduler.num_epochs=30", "scheduler.decay_milestones=[16, 24]")
    epochs: dict[str, set[int]] = {}
    for key, run in runs.items():
        assert run.expected.scheduler.total_epochs == (key.epochs or 30)
        assert run.folder.name == (
            f"fashion_mnist_1k_test_resnet-{key.method.replace('+', '_')}"
            + ("" if key.epochs is None else f"-{key.epochs}epochs")
            + "-seed0"
        )
        epochs.setdefault(key.method, set()).add(run.expected.scheduler.total_epochs)
    single = dict.fromkeys(("label_smoothing", "cross_entropy", "pskd", "tfkd_reg"), {30, 60})
    pairs = {"cskd": {30, 45}, "mutual_cskd": {30}, "ddgsd": {30}}  # two images a sample: the run at equal epochs
    assert {method: epochs[method] for method in single | pairs} == single | pairs
    assert all(epochs[method] == {30} for method in epochs.keys() - single.keys() - pairs.keys())
    # 1,000 images; CS-KD adds a forward, a third of a forward and backward.
    compute = {key: run.compute for key, run in runs.items()}
    assert compute[RunKey(*FASHION, "cross_entropy", 0, 60)] == pytest.approx(60_000)
    assert compute[RunKey(*FASHION, "cskd", 0, 45)] == pytest.approx(60_000)
    assert compute[RunKey(*FASHION, "mutual_cskd", 0)] == pytest.approx(60_000)
    assert compute[RunKey(*FASHION, "cskd", 0)] == pytest.approx(40_000)


@pytest.mark.parametrize(
    ("schedule", "stretched"),
    [
        # Drops after 8 and 12 of 15 epochs, at m − 1; after 16 and 24 of 30.
        (("decay_milestones=[9, 13]",), {"num_epochs": 30, "decay_milestones": (17, 25)}),
        (("sched=cosine", "warmup_epochs=3"), {"num_epochs": 30, "warmup_epochs": 6, "decay_milestones": (9, 13)}),
        (("sched=step", "decay_epochs=2.5"), {"num_epochs": 30, "decay_epochs": 5.0}),
        (
            ("sched=cosine", "num_epochs=10", "warmup_epochs=2", "warmup_prefix=true", "cooldown_epochs=3"),
            {"num_epochs": 20, "warmup_epochs": 4, "cooldown_epochs": 6},
        ),
    ],
)
def test_a_schedule_stretches_in_proportion(schedule, stretched):
    overrides = [f"scheduler.{setting}" for setting in schedule]
    _, runs = planned(Path("R"), "evidence", *overrides, methods=["cross_entropy"])
    run = runs[RunKey(*FASHION, "cross_entropy", 0, 30)]
    assert run.expected.scheduler.total_epochs == 30
    assert {name: getattr(run.expected.scheduler, name) for name in stretched} == stretched


def test_a_row_left_out_and_the_digits_can_be_asked_for():
    default, _ = planned(Path("R"), "evidence", datasets=[], models=["test_resnet"])
    assert {block.columns for block in default} == {(FASHION,)}
    assert "mixup" not in next(block for block in default if block.budget).methods
    blocks, runs = planned(Path("R"), "evidence", datasets=["digits"], methods=["mixup", "cutmix+cskd"])
    assert {block.methods for block in blocks} == {("mixup", "cutmix+cskd")}
    assert {(key.dataset, key.epochs) for key in runs} == ...


def test_tables_show_what_has_finished(tmp_path):
    ...
