"""Null keys are filled from the catalog and from pretrained weights."""

from __future__ import annotations

import pytest

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve, resolve_data, resolve_transform
from cskd_hf.recipe.sections import DataSection, ModelSection, TransformSection

CIFAR100 = DataSection(dataset="cifar100")
SCRATCH = ModelSection(model_name="resnet18")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        ("cifar100", ("train", "test", "img", "fine_label", 0.0)),
        ("tiny_imagenet", ("train", "valid", "image", "label", 0.0)),
        ("digits", ("train", "test", "image", "label", "holdout")),
        ("some/folder", ("train", "test", "image", "label", 0.0)),
    ],
)
def test_data_comes_from_the_catalog_else_the_usual_names(dataset, expected):
    data = resolve_data(DataSection(dataset=dataset))
    assert (data.train_split, data.test_split, data.image_column, data.label_column, data.holdout) == expected


def test_written_keys_stay():
    data = DataSection(
        dataset="digits", train_split="a", test_split="b", holdout=0.0, image_column="c", label_column="d"
    )
    assert resolve_data(data) == data
    transform = TransformSection(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert resolve_transform(transform, data, ModelSection(model_name="resnet18", pretrained=True)) == transform


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [
        ("cifar100", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("some/folder", IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_statistics_come_from_the_catalog_else_imagenet(dataset, mean, std):
    data = DataSection(dataset=dataset)
    transform = resolve_transform(TransformSection(), data, SCRATCH)
    assert (transform.mean, transform.std) == (mean, std)
    half = resolve_transform(TransformSection(mean=(0.1, 0.2, 0.3)), data, SCRATCH)
    assert (half.mean, half.std) == ((0.1, 0.2, 0.3), std)


def test_the_statistics_of_pretrained_weights_come_first():
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    pretrained = resolve_transform(TransformSection(), CIFAR100, ModelSection(model_name=name, pretrained=True))
    assert (pretrained.mean, pretrained.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    scratch = resolve_transform(TransformSection(), CIFAR100, ModelSection(model_name=name))
    assert scratch.mean == (0.4914, 0.4822, 0.4465)


def test_resolve_fills_only_data_and_transform_and_is_idempotent():
    recipe = load_recipe("digits_resnet10", ["data.batch_size=7", "run.seed=3"])
    resolved = resolve(recipe)
    assert resolved == recipe.model_copy(
        update={
            "data": resolve_data(recipe.data),
            "transform": resolve_transform(recipe.transform, recipe.data, recipe.model),
        }
    )
    assert resolved.data.batch_size == 7
    assert resolve(resolved) == resolved
