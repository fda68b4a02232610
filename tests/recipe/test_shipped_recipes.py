"""The shipped recipes: found by name, headed by a lab note, and the paper's protocol."""

from __future__ import annotations

import itertools
import re
import shlex
from pathlib import Path

import pytest
import torch
from recipe_files import ROOT, SHIPPED, own_folder, write
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve

folder = pytest.fixture(own_folder)


def test_recipes_are_shipped() -> None:
    assert {"cub200_resnet18", "digits_resnet10", "imagenet_resnet50"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("spelling", ["recipes/{}.yaml", "{}.yaml", "recipes/{}", "{}"])
def test_a_recipe_missing_in_the_working_folder_is_found_among_the_shipped(spelling: str, folder: Path) -> None:
    path = ROOT / "recipes" / "digits_resnet10.yaml"
    assert load_recipe(spelling.format("digits_resnet10")) == load_recipe(path)


def test_a_recipe_in_the_working_folder_comes_before_a_shipped_one(folder: Path) -> None:
    write(folder).rename(folder / "digits_resnet10.yaml")
    assert load_recipe("digits_resnet10.yaml").scheduler.num_epochs == 2


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_starts_with_its_lab_note(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    header = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    notes = {line[2:12].strip(): line[12:] for line in header}
    assert notes.keys() >= {"Paper", "Command", "Baseline", "Expected"}
    assert all(notes[label] for label in ("Paper", "Expected"))
    for label in ("Command", "Baseline"):
        assert re.match(rf"accelerate launch .*-m cskd_hf\.train recipes/{path.stem}\.yaml", notes[label]), label
    assert notes["Baseline"] != notes["Command"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_commands_of_the_lab_note_parse(path: Path) -> None:
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"# (?:Command|Baseline) .*-m cskd_hf\.train (.*)", line):
            recipe, *overrides = shlex.split(match[1])
            assert load_recipe(ROOT / recipe, overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_timm_builds_the_model_of_a_shipped_recipe_with_every_keyword(path: Path) -> None:
    settings = load_recipe(path, ["model.pretrained=false"]).model
    with torch.device("meta"):  # no memory, no time: shapes only
        model = create_backbone(settings, settings.num_classes or 7)
    assert model.num_classes == (settings.num_classes or 7)


PAPER = {  # recipe → epochs at each rate, images a batch
    "cub200_resnet18": ([(101, 0.1), (50, 0.01), (49, 0.001)], 32),
    "imagenet_resnet50": ([(30, 0.1), (30, 0.01), (30, 0.001)], 256),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_optimizer_is_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    with torch.device("meta"):
        model = create_backbone(recipe.model, 7)
    optimizer = create_optimizer_v2(model, **recipe.optimizer.model_dump(exclude_none=True, exclude={"lr_base"}))
    assert isinstance(optimizer, torch.optim.SGD)
    decayed = set()
    for group in optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"], group["lr"]) == (0.9, False, 0, 0.1)
        assert group["weight_decay"] == 1e-4
        decayed |= set(map(id, group["params"]))
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {id(parameter) for norm in norms for parameter in (norm.weight, norm.bias)} <= decayed
    assert decayed == set(map(id, model.parameters()))
    assert recipe.run.clip_grad is None


@pytest.mark.parametrize("name", PAPER)
def test_the_learning_rate_of_every_epoch_is_the_papers(name: str) -> None:
    recipe = load_recipe(name)
    expected = [rate for epochs, rate in PAPER[name][0] for _ in range(epochs)]
    optimizer = create_optimizer_v2(
        nn.Linear(1, 1), **recipe.optimizer.model_dump(exclude_none=True, exclude={"lr_base"})
    )
    keywords = recipe.scheduler.model_dump(exclude_none=True)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **keywords, updates_per_epoch=3)
    rates = []
    for epoch in range(num_epochs):  # as the loop steps it
        scheduler.step(epoch)
        scheduler.step_update(3 * epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", PAPER)
def test_images_and_initialisation_are_the_papers(name: str) -> None:
    recipe = resolve(load_recipe(name))
    transform, data, model = recipe.transform, recipe.data, recipe.model
    assert (data.batch_size, data.partner, data.drop_last) == (PAPER[name][1], "any", False)
    assert transform.input_size == (3, 224, 224)
    assert transform.input_size[1] / transform.crop_pct == 256  # the test's Resize
    assert (transform.scale, transform.ratio, transform.hflip, transform.vflip) == ((0.08, 1), (3 / 4, 4 / 3), 0.5, 0)
    assert (transform.crop_padding, transform.color_jitter, transform.auto_augment) == (None, None, None)
    assert (transform.mean, transform.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (model.pretrained, model.zero_init_last, model.drop_rate) == (False, False, None)
    assert recipe.method.name == "cskd"
