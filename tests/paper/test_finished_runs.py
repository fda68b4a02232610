"""Reading runs for the figures: their labels; damaged folders and runs on other data are rejected."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from figure_runs import DIGITS, write_run

from cskd_hf.errors import UserError
from cskd_hf.paper.finished_runs import read_runs
from cskd_hf.paper.plots import draw_figures


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ([{}], ["CS-KD"]),
        ([{}, {"method": {"name": "cross_entropy"}}], ["CS-KD", "Cross-entropy"]),
        ([{"seed": 3}, {"seed": 4}], ["CS-KD, seed 3", "CS-KD, seed 4"]),
        ([{}, {}], ["CS-KD, seed 0 (run-0)", "CS-KD, seed 0 (run-1)"]),
        ([{}, {"model_name": "densenet121"}], ["CS-KD, resnet18", "CS-KD, densenet121"]),
        (
            [{"method": {"name": "cross_entropy", "smoothing": value}} for value in (0.0, 0.1)] + [{}],
            ["Cross-entropy, smoothing 0", "Cross-entropy, smoothing 0.1", "CS-KD"],
        ),
        (
            [{}, {"run": {"selection": "best_holdout"}}],
            ["CS-KD, last epoch", "CS-KD, epoch with the best hold-out refinement loss"],
        ),
        (
            [{"method": {"name": "distillation", "teacher": f"runs/{seed}"}, "seed": seed} for seed in (0, 1)],
            ["KD, seed 0", "KD, seed 1"],
        ),
    ],
)
def test_a_label_has_only_the_settings_that_distinguish_the_runs(
    tmp_path: Path, settings: list[dict[str, Any]], labels: list[str]
) -> None:
    folders = [write_run(tmp_path / f"run-{number}", **each) for number, each in enumerate(settings)]
    assert [run.label for run in read_runs(folders)] == labels


def test_folders_of_the_same_name_are_labelled_by_their_path(tmp_path: Path) -> None:
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
        (without("summary.json"), "not a finished run"),
        (shutil.rmtree, "no such folder"),
        (with_text("summary.json", '{"seed": 0'), r"summary\.json: "),
        (without("predictions.safetensors"), r"predictions\.safetensors: cannot be read"),
        (with_text("predictions.safetensors", "cut"), r"predictions\.safetensors: cannot be read"),
        (without("model/config.json"), r"config\.json: cannot be read"),
        (with_text("model/config.json", "[]"), r"config\.json: cannot be read"),
        (with_text("model/config.json", "{}"), r"config\.json: has no 'label_names'"),
        (with_text("model/config.json", '{"label_names": ["a", "b"]}'), "10 logits, but .* names 2 classes"),
        (without("recipe.yaml"), r"recipe\.yaml"),
        (with_text("recipe.yaml", "data: {dataset: 3}"), r"recipe\.yaml"),
    ],
)
def test_a_damaged_folder_is_rejected_by_name_before_anything_is_written(
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
        ({"features": torch.zeros(119, 8)}, "one row per image"),
        ({"row": torch.arange(119)}, "one row per image"),
        ({"logits": torch.full((120, 10), math.nan)}, r"logits\[0\] is not finite"),
        ({"target": torch.full((120,), 10)}, r"target\[0\] is 10"),
    ],
)
def test_inconsistent_predictions_are_rejected(tmp_path: Path, tensors: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_runs([write_run(tmp_path / "run", **tensors)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data": {"dataset": "cifar100"}}, "trained on digits and cifar100"),
        ({"data": {"test_split": "holdout"}}, "splits 'test' and 'holdout'"),
        ({"class_names": DIGITS[::-1]}, "different classes"),
        ({"class_names": DIGITS[:-1]}, "different classes"),
        ({"row": torch.arange(1, 121)}, "different test images"),
        ({"target": torch.zeros(120, dtype=torch.int64)}, "different test images"),
        ({"num_images": 119}, "different test images"),
    ],
)
def test_runs_on_different_data_are_rejected(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    folders = [write_run(tmp_path / "a"), write_run(tmp_path / "b", seed=1), write_run(tmp_path / "c", **settings)]
    with pytest.raises(UserError, match=message):
        read_runs(folders)


@pytest.mark.parametrize("names", [("./mit67", "/data/mit67"), ("cub200", "bentrevett/caltech-ucsd-birds-200-2011")])
def test_one_dataset_may_have_two_names(tmp_path: Path, names: tuple[str, str]) -> None:
    folders = [write_run(tmp_path / str(seed), seed=seed, data={"dataset": name}) for seed, name in enumerate(names)]
    assert len(read_runs(folders)) == 2


def test_no_run_and_a_duplicate_are_rejected(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(UserError, match="no runs"):
        draw_figures([], tmp_path / "out")
    with pytest.raises(UserError, match="given twice"):
        draw_figures([run, tmp_path / "." / "run"], tmp_path / "out")
