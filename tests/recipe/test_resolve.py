"""Null keys are filled from the catalog and from pretrained weights."""

from __future__ import annotations

import pytest
import timm
from timm.data import resolve_data_config
from timm.models import get_pretrained_cfg

from cskd_hf.recipe.catalog import IMAGENET_MEAN, IMAGENET_STD
from cskd_hf.recipe.recipe import load_recipe, recipe_hash
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
        ("some/folder", (None, None, "image", "label", 0.0)),
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
    written = {"interpolation": "random", "crop_pct": 0.7, "crop_mode": "border", "test_input_size": (3, 256, 256)}
    transform = TransformSection(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), **written)
    assert resolve_transform(transform, data, ModelSection(model_name="resnet18", pretrained=True)) == transform


@pytest.mark.parametrize(
    ("dataset", "mean", "std"),
    [("cifar100", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)), ("some/folder", IMAGENET_MEAN, IMAGENET_STD)],
)
def test_statistics_come_from_the_catalog_else_imagenet(dataset, mean, std):
    data = DataSection(dataset=dataset)
    transform = resolve_transform(TransformSection(), data, SCRATCH)
    assert (transform.mean, transform.std) == (mean, std)
    half = resolve_transform(TransformSection(mean=(0.1, 0.2, 0.3)), data, SCRATCH)
    assert (half.mean, half.std) == ((0.1, 0.2, 0.3), std)


@pytest.mark.parametrize(("channels", "mean"), [(1, (0.449,)), (3, IMAGENET_MEAN), (4, (*IMAGENET_MEAN, 0.449))])
def test_grey_and_alpha_have_the_average_statistics_and_the_network_their_channels(channels, mean):
    overrides = [f"transform.input_size=[{channels},32,48]", "data.dataset=some/folder"]
    resolved = resolve(load_recipe("recipes/digits_resnet10.yaml", overrides))
    assert (resolved.transform.mean, len(resolved.transform.std)) == (mean, channels)
    assert resolved.model.in_chans == {1: 1, 3: None, 4: 4}[channels]


def test_the_statistics_of_pretrained_weights_come_first():
    name = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    pretrained = resolve_transform(TransformSection(), CIFAR100, ModelSection(model_name=name, pretrained=True))
    assert (pretrained.mean, pretrained.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    scratch = resolve_transform(TransformSection(), CIFAR100, ModelSection(model_name=name))
    assert scratch.mean == (0.4914, 0.4822, 0.4465)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet50.a1_in1k", ("bicubic", 1.0, "center")),  # at the test size, 288
        ("resnet50", ("bicubic", 1.0, "center")),  # the default tag
        ("test_resnet.r160_in1k", ("bilinear", 0.95, "center")),
        ("convnext_tiny.fb_in22k_ft_in1k_384", ("bicubic", 1.0, "squash")),
    ],
)
def test_resize_and_crop_are_those_of_the_pretrained_weights(name, expected):
    def resolved(**settings):
        model = ModelSection(model_name=name, pretrained=settings.pop("pretrained", True))
        transform = resolve_transform(TransformSection(**settings), CIFAR100, model)
        return transform.interpolation, transform.crop_pct, transform.crop_mode

    assert resolved() == expected
    assert resolved(pretrained=False) == ("bilinear", 0.875, "center")
    assert resolved(interpolation="random", crop_pct=0.5) == ("random", 0.5, expected[2])


def test_every_pretrained_tag_of_timm_resolves_to_a_valid_recipe():
    keys = ("mean", "std", "interpolation", "crop_pct", "crop_mode")
    for name in timm.list_pretrained():
        cfg = get_pretrained_cfg(name)
        own_size = TransformSection(input_size=tuple(cfg.input_size)) if cfg.input_size[0] == 3 else TransformSection()
        transform = resolve_transform(own_size, CIFAR100, ModelSection(model_name=name, pretrained=True))
        theirs = resolve_data_config(pretrained_cfg=cfg.to_dict(), use_test_size=not cfg.fixed_input_size)
        if cfg.input_size[0] == 3 and not cfg.fixed_input_size:
            assert transform.for_evaluation().input_size == tuple(theirs["input_size"]), name
        assert {key: getattr(transform, key) for key in keys} == {key: theirs[key] for key in keys}, name
        if len(transform.mean) == 3:
            TransformSection.model_validate(transform.model_dump())


def test_the_test_size_of_weights_needs_their_training_size_and_a_network_of_any_size():
    def tested(name="resnet50.a1_in1k", **settings):
        model = ModelSection(model_name=name, pretrained=settings.pop("pretrained", True))
        transform = resolve_transform(TransformSection(**settings), CIFAR100, model)
        return transform.for_evaluation().input_size[1], transform.crop_pct

    assert tested() == (288, 1.0)
    assert tested(crop_pct=0.9) == (288, 0.9)
    assert tested(test_input_size=(3, 256, 256)) == (256, 0.95)
    assert tested(input_size=(3, 128, 128)) == (128, 0.95)
    assert tested(input_size=(3, 128, 128), test_input_size=(3, 288, 288)) == (288, 1.0)
    assert tested(pretrained=False) == (224, 0.875)
    assert tested("vit_base_patch16_224.augreg_in21k_ft_in1k") == (224, 0.9)


def test_a_written_default_hashes_as_null():
    null, written = (
        load_recipe("digits_resnet10", [f"transform.crop_pct={pct}", f"transform.interpolation={interpolation}"])
        for pct, interpolation in (("null", "null"), (0.875, "bilinear"))
    )
    assert recipe_hash(resolve(null)) == recipe_hash(resolve(written))
    assert recipe_hash(written) != recipe_hash(written.replace(transform={"crop_pct": 0.9}))
    assert recipe_hash(null) == recipe_hash(written)


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
