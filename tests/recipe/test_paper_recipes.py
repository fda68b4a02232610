"""The recipes of the paper's tables follow its protocol and differ only where it does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
SMALL, FINE_GRAINED = ("cifar100", "tiny_imagenet"), ("cub200", "stanford_dogs", "mit67")
NETWORKS = ("resnet18", "densenet121", "resnet10")
AT_32_PX = {network: f"{'' if network == 'densenet121' else 'preact'}{network}_32px" for network in NETWORKS}
CELLS = [(dataset, network) for dataset in SMALL + FINE_GRAINED for network in NETWORKS]
IMAGENET = ("resnet50", "resnet101", "resnext101_32x4d")
PAPER = yaml.safe_load((ROOT / "tests" / "support" / "paper_cells.yaml").read_text(encoding="utf-8"))


def load(dataset: str, network: str) -> Recipe:
    return load_recipe(RECIPES / f"{dataset}_{network}.yaml")


def protocol(recipe: Recipe) -> dict[str, Any]:
    """All settings but those that may differ between two cells of a table."""
    settings = recipe.to_dict()
    for section, key in (("data", "dataset"), ("model", "model_name"), ("run", "output_dir")):
        del settings[section][key]
    return settings


def assert_papers_crops(recipe: Recipe) -> None:
    """RandomResizedCrop(224) and flip in training, Resize(256) and CenterCrop(224) for evaluation."""
    transform = resolve(recipe).transform
    assert (transform.input_size, transform.input_size[1] / transform.crop_pct) == ((3, 224, 224), 256)
    assert (transform.scale, transform.ratio, transform.hflip, transform.vflip) == ((0.08, 1), (3 / 4, 4 / 3), 0.5, 0)
    assert (transform.crop_padding, transform.color_jitter, transform.auto_augment) == (None, None, None)
    assert transform.interpolation == "bilinear"
    assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(("dataset", "network"), CELLS)
def test_every_cell_has_the_papers_optimizer_schedule_and_data_order(dataset, network):
    recipe = load(dataset, network)
    assert recipe.optimizer.model_dump(exclude_none=True) == {
        "opt": "momentum",
        "lr": 0.1,
        "weight_decay": 1e-4,
        "momentum": 0.9,
        "filter_bias_and_bn": False,
    }
    assert (recipe.scheduler.sched, recipe.scheduler.num_epochs, recipe.scheduler.decay_rate) == ("multistep", 200, 0.1)
    assert recipe.scheduler.decay_milestones == (102, 152)
    assert recipe.scheduler.warmup_epochs == 0
    assert recipe.run.clip_grad is None
    assert (recipe.data.partner, recipe.data.holdout, recipe.data.drop_last) == ("any", 0.0, False)
    assert (recipe.method.name, recipe.transform.color_jitter, recipe.transform.hflip) == ("cskd", None, 0.5)
    assert not recipe.model.pretrained


@pytest.mark.parametrize("dataset", SMALL)
def test_the_32_pixel_datasets_train_32_pixel_networks_at_batch_128(dataset):
    for network in NETWORKS:
        recipe = load(dataset, network)
        assert recipe.model.model_name == AT_32_PX[network]
        assert (recipe.data.batch_size, recipe.transform.input_size) == (128, (3, 32, 32))
        assert recipe.transform.crop_padding == (4 if dataset == "cifar100" else None)
        assert recipe.transform.crop_pct == 1.0


@pytest.mark.parametrize("dataset", FINE_GRAINED)
def test_the_fine_grained_datasets_train_torchvision_networks_at_batch_32(dataset):
    for network in NETWORKS:
        recipe = load(dataset, network)
        assert recipe.model.model_name == network
        assert recipe.model.zero_init_last is (None if network == "densenet121" else False)
        assert recipe.data.batch_size == 32
        assert_papers_crops(recipe)


@pytest.mark.parametrize("dataset", SMALL + FINE_GRAINED)
def test_recipes_of_one_dataset_differ_only_in_the_network(dataset):
    first, *others = (protocol(load(dataset, network)) for network in NETWORKS)
    for other in others:
        other["model"]["zero_init_last"] = first["model"]["zero_init_last"]
        assert other == first


def test_fine_grained_recipes_differ_only_in_the_dataset():
    first, *others = (protocol(load(dataset, "resnet18")) for dataset in FINE_GRAINED)
    assert others == [first, first]


def test_lambda_cls_is_the_authors():
    for dataset, weight in (("cifar100", 1.0), ("cub200", 3.0)):
        assert load(dataset, "resnet18").method == METHODS["cskd"](temperature=4.0, distill_loss_weight=weight)


def test_imagenet_recipes_differ_only_in_the_network():
    first, *others = (protocol(load("imagenet", network)) for network in IMAGENET)
    assert others == [first, first]
    recipe = load("imagenet", "resnet50")
    assert_papers_crops(recipe)
    assert (recipe.model.pretrained, recipe.model.zero_init_last, recipe.data.partner) == (False, False, "any")
    assert (recipe.data.batch_size, recipe.scheduler.num_epochs, recipe.scheduler.decay_milestones) == (
        256,
        90,
        (31, 61),
    )


@pytest.mark.parametrize(("dataset", "network"), CELLS + [("imagenet", network) for network in IMAGENET])
def test_the_header_quotes_the_papers_numbers(dataset, network):
    header = (RECIPES / f"{dataset}_{network}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    for figure in PAPER[f"{dataset}_{network}"]:
        assert figure in header
