"""Reading the runs that figures are made of: their labels, and the refusal of what is not whole or of other data."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_runs import DATA, DIGITS, write_run

from cskd_hf.errors import UserError
from cskd_hf.paper.finished_runs import read_runs
from cskd_hf.paper.plots import draw_figures


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ([{}], ["CS-KD"]),
        ([{}, {"method": {"name": "cross_entropy"}}], ["CS-KD", "cross entropy"]),
        ([{"seed": 3}, {"seed": 4}], ["CS-KD, seed 3", "CS-KD, seed 4"]),
        ([{}, {}], ["CS-KD, seed 0 (run-0)", "CS-KD, seed 0 (run-1)"]),
        ([{}, {"model_name": "densenet121"}], ["CS-KD, resnet18", "CS-KD, densenet121"]),
        (
            [{"method": {"name": "cross_entropy", "smoothing": value}} for value in (0.0, 0.1)] + [{}],
            ["cross entropy, smoothing 0", "cross entropy, smoothing 0.1", "CS-KD"],
        ),
        (
            [{"method": {"name": "distillation", "teacher": f"runs/{seed}"}, "seed": seed} for seed in (0, 1)],
            ["distillation, seed 0", "distillation, seed 1"],
        ),
    ],
)
def test_a_label_says_as_much_as_tells_the_runs_apart_and_no_more(
    tmp_path: Path, keys: list[dict[str, Any]], labels: list[str]
) -> None:
    folders = [write_run(tmp_path / f"run-{number}", **each) for number, each in enumerate(keys)]
    assert [run.label for run in read_runs(folders)] == labels


def test_folders_of_one_name_are_told_apart_by_where_they_are(tmp_path: Path) -> None:
    runs = read_runs([write_run(tmp_path / parent / "run") for parent in ("a", "b")])
    assert [run.label.removeprefix("CS-KD, seed 0 (run) ") for run in runs] == [
        f"({tmp_path / parent / 'run'})" for parent in ("a", "b")
    ]


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("summary.json"), "no finished run"),
        (shutil.rmtree, "no such folder"),
        (with_text("summary.json", '{"seed": 0'), r"summary\.json: cannot be read"),
        (with_text("summary.json", "[]"), r"summary\.json: cannot be read"),
        (with_text("summary.json", '{"seed": 0}'), r"summary\.json: has no 'method'"),
        (without("predictions.safetensors"), r"predictions\.safetensors: cannot be read"),
        (with_text("predictions.safetensors", "cut"), r"predictions\.safetensors: cannot be read"),
        (without("model/config.json"), r"config\.json: cannot be read"),
        (with_text("model/config.json", '{"label_names": ["a", "b"]}'), "10 logits, but .* names 2 classes"),
        (without("recipe.yaml"), r"recipe\.yaml"),
        (with_text("recipe.yaml", "data: {dataset: 3}"), r"recipe\.yaml: data: "),
    ],
)
def test_a_folder_that_is_no_whole_run_is_refused_by_name_and_nothing_is_written(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    good, bad = write_run(tmp_path / "good"), write_run(tmp_path / "bad", seed=1)
    spoil(bad)
    with pytest.raises(UserError, match=message) as raised:
        draw_figures([good, bad], tmp_path / "out")
    assert str(bad) in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"features": torch.full((120, 8), math.nan)}, "features are not finite"),
        ({"features": torch.zeros(119, 8)}, "one row for each image"),
        ({"row": torch.arange(119)}, "one row for each image"),
        ({"logits": torch.full((120, 10), math.nan)}, r"logits\[0\] is not finite"),
        ({"target": torch.full((120,), 10)}, r"target\[0\] is 10"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_runs([write_run(tmp_path / "run", **tensors)])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": DATA | {"dataset": "cifar100"}}, "trained on digits and cifar100"),
        ({"data": DATA | {"test_split": "holdout"}}, "splits 'test' and 'holdout'"),
        ({"class_names": DIGITS[::-1]}, "other classes"),
        ({"class_names": DIGITS[:-1]}, "other classes"),
        ({"row": torch.arange(1, 121)}, "other test images"),
        ({"target": torch.zeros(120, dtype=torch.int64)}, "other test images"),
        ({"num_images": 119}, "other test images"),
    ],
)
def test_runs_on_other_data_are_refused_together(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1), write_run(tmp_path / "c", **keys)]
    with pytest.raises(UserError, match=message):
        read_runs(folders)


@pytest.mark.parametrize("places", [("./mit67", "/data/mit67"), ("cub200", "bentrevett/caltech-ucsd-birds-200-2011")])
def test_one_set_under_two_names_is_one_set(tmp_path: Path, places: tuple[str, str]) -> None:
    folders = [
        write_run(tmp_path / str(seed), seed=seed, data=DATA | {"dataset": place}) for seed, place in enumerate(places)
    ]
    assert len(read_runs(folders)) == 2


def test_no_run_and_the_same_run_twice_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no runs"):
        draw_figures([], tmp_path / "out")
    with pytest.raises(UserError, match="given twice"):
        draw_figures([run, tmp_path / "." / "run"], tmp_path / "out")
