"""The shipped recipes: looked up by name, with a lab note, built by timm, at the paper's rates."""

from __future__ import annotations

import itertools
import re
import shlex

import pytest
import torch
from recipe_files import ROOT, SHIPPED, write
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import Recipe, load_recipe

each_recipe = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


@pytest.mark.parametrize("spelling", ["recipes/{}.yaml", "{}.yaml", "recipes/{}", "{}"])
def test_a_recipe_missing_in_the_working_folder_is_a_shipped_one(spelling, folder):
    expected = load_recipe(ROOT / "recipes" / "digits_resnet10.yaml")
    assert load_recipe(spelling.format("digits_resnet10")) == expected


def test_a_recipe_in_the_working_folder_comes_first(folder):
    write(folder).rename(folder / "digits_resnet10.yaml")
    assert load_recipe("digits_resnet10.yaml").scheduler.num_epochs == 2


@each_recipe
def test_the_header_is_a_lab_note_whose_commands_parse(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    notes = {line[2:12].strip(): line[12:] for line in header}
    methods = {}
    assert notes["Paper"]
    assert notes["Expected"]
    for label in ("Command", "Baseline", *(["Mutual"] if "Mutual" in notes else [])):
        match = re.fullmatch(r"(?:cskd-train|accelerate launch -q .*-m cskd_hf\.train) (recipes/.*)", notes[label])
        assert match, label
        recipe, *overrides = shlex.split(match[1])
        assert ROOT / recipe == path
        methods[label] = load_recipe(path, overrides).method.name
    assert methods["Baseline"] == "cross_entropy"
    assert methods.get("Mutual", "mutual_cskd") == "mutual_cskd"
    assert methods["Command"] == "cskd"


@each_recipe
def test_the_name_starts_with_a_catalog_dataset_unless_the_images_are_the_users(path):
    recipe = load_recipe(path)
    if path.stem in ("finetune", "from_scratch"):
        assert (recipe.data.dataset, recipe.data.holdout) == ("FOLDER", 0.1)
    else:
        assert recipe.data.dataset in CATALOG
        assert path.stem.startswith(f"{recipe.data.dataset}_")
    assert recipe.data.workers == "auto"


@each_recipe
def test_the_batch_arithmetic_in_the_comment_is_right(path):
    recipe = load_recipe(path)
    (line,) = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("  batch_size:")]
    anchors = recipe.data.batch_size * recipe.run.gradient_accumulation_steps
    assert f"= {anchors} anchors ({2 * anchors} images)" in line


PAPER = ["cub200_resnet18", "imagenet_resnet50"]


def timms_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimizer for the recipe's own batch."""
    lr, _ = recipe.optimizer.scaled_lr(recipe.data.batch_size)
    keywords = recipe.optimizer.model_dump(exclude_none=True, exclude={"lr", "lr_base"})
    return create_optimizer_v2(model, lr=lr, **keywords)


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_optimizer_is_sgd_that_decays_every_parameter(name):
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = create_backbone(recipe.model, 7)
    optimizer = timms_optimizer(recipe, model)
    assert isinstance(optimizer, torch.optim.SGD)
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"], group["lr"]) == (0.9, False, 0, 0.1)
        assert group["weight_decay"] == 1e-4
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == set(map(id, model.parameters()))


@pytest.mark.parametrize(("name", "drops"), list(zip(PAPER, [(101, 50, 49), (30, 30, 30)], strict=True)))
def test_the_learning_rate_of_every_epoch_is_the_papers(name, drops):
    recipe = load_recipe(name)
    expected = [rate for epochs, rate in zip(drops, (0.1, 0.01, 0.001), strict=True) for _ in range(epochs)]
    optimizer = timms_optimizer(recipe, nn.Linear(1, 1))
    keywords = recipe.scheduler.model_dump(exclude_none=True)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **keywords, updates_per_epoch=3)
    rates = []
    for epoch in range(num_epochs):  # as the training loop steps it
        scheduler.step(epoch)
        scheduler.step_update(3 * epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected, rel=1e-9)
