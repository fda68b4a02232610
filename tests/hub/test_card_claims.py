"""What a card says of a run only where it holds."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from cards import card
from publishable_runs import trained
from safetensors.torch import save_file

from cskd_hf.hub.source import read_source
from cskd_hf.recipe.resolve import resolve_data
from cskd_hf.recipe.sections import DataSection


@pytest.fixture(scope="module")
def source():
    return read_source(trained())


def test_without_a_holdout_set_the_card_says_that_nothing_is_calibrated():
    text = card(read_source(trained(holdout=0.0)))
    assert "Probabilities: not calibrated: no temperature was fitted, the run had no hold-out set" in text
    assert "there is no hold-out set" in text
    assert "evaluated once, at the end" not in text
    assert "| calibrated |" not in text
    assert "None" not in text.replace("[None]", "")


def uncalibrated(source):
    """The same run, as if its hold-out set supported no temperature."""
    metrics = source.summary.metrics.model_copy(update={"temperature": None, "metrics_scaled": None})
    return dataclasses.replace(source, summary=source.summary.model_copy(update={"metrics": metrics}))


def test_a_holdout_set_that_supports_no_temperature_is_not_denied(source):
    text = card(uncalibrated(source))
    assert "which was evaluated once, at the end." in text
    assert "there is no hold-out set" not in text


def test_the_card_counts_the_images_that_the_metrics_are_of(source):
    summary = source.summary.model_copy(update={"skipped_images": {"train": 0, "test": 3, "holdout": 1}})
    assert "On the 17 images of split `test`" in card(dataclasses.replace(source, summary=summary))


def test_a_class_map_that_the_release_lacks_is_not_described(source):
    assert "class_map.txt" in card(source)
    config = source.config | {"label_names": ["a", "b", "c", "two\nlines"]}
    assert "class_map.txt" not in card(dataclasses.replace(source, config=config))


@pytest.mark.parametrize("size", [1024, 1280])
def test_the_card_states_the_size_of_the_features_that_its_code_gives(tmp_path, source, size):
    """MobileNets have a layer between the features that timm counts, 288 of this one, and the classifier."""
    save_file({"features": torch.zeros(1, size)}, tmp_path / "predictions.safetensors")
    config = source.config | {"num_features": 288}
    run = dataclasses.replace(uncalibrated(source), folder=tmp_path, config=config)
    assert f"Features, (1, {size}), without the classifier" in card(run)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, "data.dataset=FOLDER data.test_split=test"),
        (
            {"label_column": "species", "labels": "index"},
            "data.test_split=test data.label_column=species data.labels=index",
        ),
        ({"test_split": 0.2, "train_split": "all"}, "data.test_split=0.2 data.train_split=all"),
        ({"test_split": "my test"}, "'data.test_split=my test'"),
        ({"dataset": "cifar100", "test_split": "test"}, "data.dataset=cifar100 data.test_split=test\n"),
        (
            {"dataset": "cifar100", "test_split": "test", "revision": "v2"},
            "data.dataset=cifar100 data.revision=v2 data.test",
        ),
    ],
)
def test_the_command_that_evaluates_names_the_same_images(source, data, expected):
    section = resolve_data(DataSection(**{"dataset": source.recipe.data.dataset, "test_split": "test"} | data))
    text = card(source, source.recipe.model_copy(update={"data": section}))
    (command,) = re.findall(r"^python -m cskd_hf\.evaluate .*\n", text, re.MULTILINE)
    assert expected in command
