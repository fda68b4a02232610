"""What a recipe leaves open about its data, filled in from the catalog and from pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.recipe.resolve import resolve


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    def build(**sections: dict[str, Any]) -> Recipe:
        settings = {
            "data": {"dataset": "cifar100"},
            "model": {"model_name": "resnet18"},
            "method": {"name": "cross_entropy"},
            "optimizer": {"lr": 0.1},
            "scheduler": {"num_epochs": 1},
        }
        return Recipe.model_validate(
            {name: keys | sections.pop(name, {}) for name, keys in settings.items()} | sections
        )

    return build


def test_resolve_fills_every_null_from_the_catalog(recipe):
    found = resolve(recipe())
    data = found.data
    assert (data.train_split, data.test_split, data.image_column, data.label_column, data.holdout) == (
        "train",
        "test",
        "img",
        "fine_label",
        0.0,
    )
    assert found.transform.mean == (0.4914, 0.4822, 0.4465)
    assert found.transform.std == (0.2023, 0.1994, 0.2010)
    assert resolve(recipe(data={"dataset": "tiny_imagenet"})).data.test_split == "valid"
    assert resolve(recipe(data={"dataset": "digits"})).data.holdout == "holdout"


def test_resolve_falls_back_on_the_usual_names_and_imagenets_statistics(recipe):
    found = resolve(recipe(data={"dataset": "some/folder"}))
    data = found.data
    assert (data.train_split, data.test_split, data.image_column, data.label_column, data.holdout) == (
        "train",
        "test",
        "image",
        "label",
        0.0,
    )
    assert (found.transform.mean, found.transform.std) == (IMAGENET_MEAN, IMAGENET_STD)


def test_resolve_leaves_the_recipes_own_values(recipe):
    own = {
        "data": {
            "dataset": "digits",
            "train_split": "a",
            "test_split": "b",
            "holdout": 0.0,
            "image_column": "c",
            "label_column": "d",
        },
        "transform": {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)},
    }
    given = recipe(**own)
    assert resolve(given) == given
    assert resolve(recipe(**own, model={"pretrained": True})).transform.mean == (0.1, 0.2, 0.3)
    assert resolve(recipe(transform={"mean": (0.1, 0.2, 0.3)})).transform.std == (0.2023, 0.1994, 0.2010)


def test_resolve_changes_nothing_but_the_nulls_and_is_done_in_one_go(recipe):
    given = recipe(data={"batch_size": 7}, run={"seed": 3})
    found = resolve(given)
    assert resolve(found) == found
    assert found.replace(data=dict.fromkeys(("train_split", "test_split", "image_column", "label_column", "holdout")),
                         transform={"mean": None, "std": None}) == given  # fmt: skip


def test_the_pretrained_weights_own_statistics_come_first(recipe):
    pretrained = {"model_name": "vit_tiny_patch16_224.augreg_in21k_ft_in1k", "pretrained": True}
    assert resolve(recipe(model=pretrained)).transform.mean == (0.5, 0.5, 0.5)
    assert resolve(recipe(model=pretrained)).transform.std == (0.5, 0.5, 0.5)
    assert resolve(recipe(model=pretrained | {"pretrained": False})).transform.mean == (0.4914, 0.4822, 0.4465)
