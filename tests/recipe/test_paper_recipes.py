"""What should be equal among the paper's recipes is equal, and where they differ is what the paper says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "recipes"
SMALL, FINE_GRAINED = ("cifar100", "tiny_imagenet"), ("cub200", "stanford_dogs", "mit67")
NETWORKS = ("resnet18", "densenet121", "resnet10")
AT_32_PX = {network: f"{'' if network == 'densenet121' else 'preact_'}{network}_32px" for network in NETWORKS}
CELLS = [(dataset, network) for dataset in SMALL + FINE_GRAINED for network in NETWORKS]
IMAGENET = ("resnet50", "resnet101", "resnext101_32x4d")
PAPER = yaml.safe_load((ROOT / "tests" / "support" / "paper_cells.yaml").read_text(encoding="utf-8"))


def recipe_of(dataset: str, network: str) -> Recipe:
    return load_recipe(RECIPES / f"{dataset}_{network}.yaml")


def common(recipe: Recipe) -> dict[str, Any]:
    """Everything but what may differ between two cells of a table."""
    settings = recipe.to_dict()
    for section, key in (("data", "dataset"), ("model", "model_name"), ("run", "output_dir")):
        del settings[section][key]
    return settings


@pytest.mark.parametrize(("dataset", "network"), CELLS)
def test_optimizer_schedule_and_seed_are_the_papers_in_every_cell(dataset, network):
    recipe = recipe_of(dataset, network)
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
def test_the_32_px_sets_train_the_32_px_networks_in_batches_of_128(dataset):
    for network in NETWORKS:
        recipe = recipe_of(dataset, network)
        assert recipe.model.model_name == AT_32_PX[network]
        assert (recipe.data.batch_size, recipe.transform.input_size) == (128, (3, 32, 32))
        assert recipe.transform.crop_padding == (4 if dataset == "cifar100" else None)
        assert recipe.transform.crop_pct == 1.0


@pytest.mark.parametrize("dataset", FINE_GRAINED)
def test_the_fine_grained_sets_train_torchvisions_networks_in_batches_of_32(dataset):
    for network in NETWORKS:
        recipe = recipe_of(dataset, network)
        assert recipe.model.model_name == network
        assert recipe.model.zero_init_last is (None if network == "densenet121" else False)
        assert (recipe.data.batch_size, recipe.transform.input_size) == (32, (3, 224, 224))
        assert (recipe.transform.crop_padding, recipe.transform.crop_pct) == (None, 0.875)
        assert (recipe.transform.scale, recipe.transform.interpolation) == ((0.08, 1.0), "bilinear")


@pytest.mark.parametrize("dataset", SMALL + FINE_GRAINED)
def test_the_networks_of_one_set_differ_in_the_network_alone(dataset):
    first, *others = (common(recipe_of(dataset, network)) for network in NETWORKS)
    for other in others:
        other["model"]["zero_init_last"] = first["model"]["zero_init_last"]
        assert other == first


def test_the_fine_grained_sets_differ_in_the_set_alone():
    first, *others = (common(recipe_of(dataset, "resnet18")) for dataset in FINE_GRAINED)
    assert others == [first, first]


def test_the_authors_weights_of_the_distillation_are_kept():
    for dataset, weight in (("cifar100", 1.0), ("cub200", 3.0)):
        method = recipe_of(dataset, "resnet18").method
        assert method.model_dump() == {"name": "cskd", "temperature": 4.0, "distill_loss_weight": weight} | {
            "batch_norm": "separate"
        }


def test_the_imagenet_recipes_differ_in_the_network_alone():
    first, *others = (common(recipe_of("imagenet", network)) for network in IMAGENET)
    assert others == [first, first]
    recipe = recipe_of("imagenet", "resnet50")
    assert (recipe.data.batch_size, recipe.scheduler.num_epochs, recipe.scheduler.decay_milestones) == (
        256,
        90,
        (31, 61),
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_recipes_name_says_its_set_and_the_catalog_knows_it(path):
    dataset = load_recipe(path).data.dataset
    assert dataset in CATALOG
    assert path.stem.startswith(f"{dataset}_")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_batch_arithmetic_written_beside_the_batch_size_is_right(path):
    recipe = load_recipe(path)
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("  batch_size:")]
    anchors = recipe.data.batch_size * recipe.run.gradient_accumulation_steps
    assert f"= {anchors} anchors ({2 * anchors} images)" in line


@pytest.mark.parametrize(("dataset", "network"), CELLS + [("imagenet", network) for network in IMAGENET])
def test_the_header_quotes_the_papers_cell(dataset, network):
    header = (RECIPES / f"{dataset}_{network}.yaml").read_text(encoding="utf-8").split("\n\n")[0]
    for figure in PAPER[f"{dataset}_{network}"]:
        assert figure in header
