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
from cskd_hf.paper.selection import select
from cskd_hf.paper.tables import draw

PLAIN = (("cross_entropy", 60), ("cskd", 45), ("mutual_cskd", None))  # None: the recipe's 30 epochs
MIXED = (("cross_entropy", 60), ("cskd", 26), ("mutual_cskd", 15))
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
    single = {method: {30, 60} for method in ("label_smoothing", "cross_entropy", "pskd", "tfkd_reg")}
    pairs = {"cskd": {30, 45}, "mutual_cskd": {30}, "ddgsd": {30}}  # two images a sample: the run at equal epochs
    assert {method: epochs[method] for method in single | pairs} == single | pairs
    assert all(epochs[method] == {30} for method in epochs.keys() - single.keys() - pairs.keys())
    # 1,000 images; CS-KD adds a forward, a third of a forward and backward.
    compute = {key: run.compute(1_000) for key, run in runs.items()}
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


def test_rows_of_one_method_and_the_digits_are_there_on_request():
    default, _ = planned(Path("R"), "evidence", datasets=[], models=["test_resnet", "resnet10"])
    assert {block.columns for block in default} == {(("icons", "test_resnet"), FASHION)}
    assert {"mixup" in block.methods for block in default if block.budget} == {False}
    _, runs = planned(Path("R"), "evidence", datasets=["digits"], methods=["mixup", "label_smoothing+cskd"])
    assert [(*key[:3], key.epochs) for key in runs] == [
        ("digits", "resnet10", "mixup", None),
        ("digits", "resnet10", "label_smoothing+cskd", None),
        ("digits", "resnet10", "mixup", 60),
        ("digits", "resnet10", "label_smoothing+cskd", 45),
    ]


def test_strong_regularisation_is_the_same_with_and_without_cskd():
    _, runs = planned(Path("R"), "strong", "scheduler.num_epochs=30")
    plain = {"smoothing": 0.0, "cutmix_alpha": 0.0, "auto_augment": None, "re_prob": 0.0}
    cutmix = plain | {"cutmix_alpha": 1.0}
    augmented = cutmix | {"auto_augment": "rand-m6-mstd0.5-inc1", "re_prob": 0.25}
    expected = [
        *((method, plain, epochs) for method, epochs in PLAIN),
        *((method, plain | {"smoothing": 0.1}, epochs) for method, epochs in PLAIN),
        # Mixed images are forwarded besides the pairs: 2 1/3 and 4 instead of 1 1/3 and 2.
        *((method, cutmix, epochs) for method, epochs in MIXED),
        *((method, augmented, epochs) for method, epochs in MIXED),
    ]
    planned_runs = []
    for run in runs.values():
        recipe = run.expected.to_dict()
        settings = recipe["method"] | recipe["transform"]
        planned_runs.append((recipe["method"]["name"], {name: settings[name] for name in plain}, run.key.epochs))
        if run.key.method.endswith("cskd"):
            assert (settings["temperature"], settings["distill_loss_weight"]) == (4.0, 1.0)
    assert planned_runs == expected
    assert len({run.folder for run in runs.values()}) == 12
    _, others = planned(Path("R"), "evidence", "scheduler.num_epochs=30")
    shared = {key.method for key in runs.keys() & others.keys()}
    assert shared == {"cross_entropy", "cskd", "mutual_cskd", "label_smoothing"}


def test_tables_show_what_has_finished(tmp_path):
    blocks, runs = planned(tmp_path, "evidence", seeds=(0, 1, 2), methods=["cskd", "cross_entropy", "mutual_cskd"])
    errors = {"cross_entropy": [20.0, 21.0, 22.5], "cskd": [19.0, 19.5], "mutual_cskd": []}
    for key, run in runs.items():
        if key.epochs is None and key.seed < len(errors[key.method]):
            nll = 1.0 + key.seed / 8
            write_finished(run, errors[key.method][key.seed], nll=nll, scaled_ece=1.5 if key.seed else None)
    states = {key: inspect_run(run) for key, run in runs.items()}
    text = markdown(fill_all(blocks, runs, states))
    title, *tables = text.partition("\n### Missing")[0].split("\n### ")
    assert title.startswith("## Every method on small sets\n")
    epochs, compute = ([line.split(" | ") for line in table.splitlines()[2:]] for table in tables)
    assert tables[0].startswith("Fashion-MNIST, 100 images per class, test_resnet: equal epochs\n")
    assert tables[1].startswith("Fashion-MNIST, 100 images per class, test_resnet: equal training compute\n")

    metrics = ["top-1 error", "NLL", "ECE", "ECE, fitted T", "Brier", "AURC", "AURC, logit norm", "Recall@1"]
    heads, _, *cells = ([cell.strip("| `") for cell in row] for row in epochs)
    assert heads == ["method", "n", "epochs", "compute", *metrics]
    rows = {row[0]: dict(zip(heads, row, strict=True)) for row in cells}
    assert [(name, row["n"], row["epochs"], row["compute"]) for name, row in rows.items()] == [
        ("cross_entropy", "3", "15", "15 k"),
        ("cskd", "2", "15", "20 k"),
        ("mutual_cskd", "0", "15", "30 k"),
    ]
    spread = np.std(errors["cross_entropy"], ddof=1)
    assert rows["cross_entropy"]["top-1 error"] == f"{np.mean(errors['cross_entropy']):.2f} ± {spread:.2f}"
    assert rows["cskd"]["top-1 error"] == "**19.25 ± 0.35**"
    assert rows["cskd"]["NLL"] == f"1.062 ± {np.std([1.0, 1.125], ddof=1):.3f}"
    assert rows["cross_entropy"]["ECE, fitted T"] == "1.50 ± 0.00 (2)"  # of 3
    assert rows["mutual_cskd"]["Brier"] == "–"
    assert [row[:4] for row in compute[2:]] == [
        ["| `cross_entropy`", "0", "30    ", "30 k   "],
        ["| `cskd`         ", "0", "22    ", "29 k   "],
        ["| `mutual_cskd`  ", "0", "15    ", "30 k   "],
    ]
    missing = "- fashion_mnist_1k_test_resnet, seeds 0, 1, 2, 22 epochs, not started: `cskd`"
    assert missing in text.splitlines()

    draw(blocks, runs, states, tmp_path / "figures" / "costs.pdf")
    assert (tmp_path / "figures" / "costs.pdf").read_bytes().startswith(b"%PDF")
