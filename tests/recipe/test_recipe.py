"""The recipe as an object: written, reloaded, hashed."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from recipe_files import GOOD, SHIPPED, changed, write

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS
from cskd_hf.recipe.__main__ import main
from cskd_hf.recipe.recipe import dump_recipe, identity, load_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_recipe_reloads_equal(path, folder):
    recipe = resolve(load_recipe(path, ["run.report_to=[tensorboard]", "optimizer.weight_decay=3e-5"]))
    written = folder / "other_name.yaml"
    dump_recipe(recipe, written)
    reloaded = load_recipe(written)
    assert reloaded == recipe
    assert recipe_hash(reloaded) == recipe_hash(recipe)
    assert [path.name for path in folder.iterdir()] == [written.name]
    assert yaml.safe_load(written.read_text()) == recipe.to_dict()  # any YAML parser reads it


def test_the_recipe_command_prints_a_recipe_that_reloads_equal(folder, capsys):
    write(folder)
    assert main(["r.yaml", "optimizer.lr=1e-5"]) == 0
    printed = capsys.readouterr().out
    write(folder, printed)
    assert load_recipe("r.yaml").optimizer.lr == 1e-5
    assert main(["r.yaml"]) == 0
    assert capsys.readouterr().out == printed


def test_a_recipe_is_frozen():
    recipe = load_recipe("digits_resnet10")
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 1.0
    with pytest.raises(ValueError, match="frozen"):
        recipe.method = METHODS["cross_entropy"]()


def test_the_run_folder_defaults_to_dataset_recipe_method_and_seed(folder):
    write(folder)
    overrides = ["method={name: cross_entropy}", "run.seed=2"]
    assert load_recipe("r.yaml", overrides).run.output_dir == "runs/digits_r-cross_entropy-seed2"
    assert load_recipe("r.yaml", [*overrides, "run.output_dir=elsewhere"]).run.output_dir == "elsewhere"


@pytest.mark.parametrize(
    ("recipe", "dataset", "name"),
    [
        ("finetune", "/data/my birds/", "my_birds_finetune"),
        ("from_scratch", "owner/birds", "birds_from_scratch"),
        ("cub200_resnet50_pretrained", "../birds", "birds_resnet50_pretrained"),
        ("finetune", "cub200", "cub200_finetune"),
        ("cub200_resnet18", "Donghyun99/CUB-200-2011", "cub200_resnet18"),
        ("cifar100_resnet18", "digits", "digits_resnet18"),
    ],
)
def test_a_run_is_named_after_its_images(recipe, dataset, name):
    assert load_recipe(recipe, [f"data.dataset='{dataset}'"]).run.output_dir == f"runs/{name}-cskd-seed0"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_for_a_named_set_names_its_run(path):
    recipe = load_recipe(path)
    folder = "FOLDER_" * (recipe.data.dataset == "FOLDER") + path.stem
    assert recipe.run.output_dir == f"runs/{folder}-{recipe.method.name}-seed0"


NOT_HASHED = {
    "data": {"workers": 7},
    "run": {
        "output_dir": "elsewhere",
        "resume": "never",
        "report_to": ("tensorboard",),
        "logging_steps": 3,
        "checkpoint_steps": 5,
        "checkpoints_total_limit": 9,
        "num_processes": 3,
        "ddp_timeout": 60,
        "max_hours": 1.5,
        "hub_model_id": "somebody/something",
        "hub_private_repo": False,
        "hub_license": "mit",
        "model_ema_warmup": False,  # without an average
        "selection_metric": "nll",  # without selection
    },
}


def test_exactly_the_keys_without_effect_on_results_are_not_hashed(folder):
    write(folder)
    recipe = load_recipe("r.yaml")
    not_hashed: dict[str, set[str]] = {}
    for section, keys in recipe.to_dict().items():
        if missing := keys.keys() - identity(recipe)[section].keys():
            not_hashed[section] = missing
    assert not_hashed == {section: set(keys) for section, keys in NOT_HASHED.items()}
    for section, keys in NOT_HASHED.items():
        for key, value in keys.items():
            other = recipe.replace(**{section: {key: value}})
            assert other != recipe
            assert recipe_hash(other) == recipe_hash(recipe), key


@pytest.mark.parametrize(
    "override",
    [
        "optimizer.lr=0.2",
        "optimizer.filter_bias_and_bn=false",
        "run.seed=1",
        "run.mixed_precision=bf16",
        "run.gradient_accumulation_steps=2",
        "data.batch_size=64",
        "data.partner=not_self",
        "data.holdout=0.1",
        "transform.hflip=0",
        "model.model_name=resnet18",
        "method.temperature=1",
        "method={name: cross_entropy}",
        "scheduler.num_epochs=3",
    ],
)
def test_keys_with_an_effect_on_results_are_hashed(override, folder):
    write(folder)
    assert recipe_hash(load_recipe("r.yaml", [override])) != recipe_hash(load_recipe("r.yaml"))


def test_the_hash_does_not_depend_on_spelling_or_order(folder):
    write(folder, changed("lr: 0.1", "lr: 1"))
    expected = recipe_hash(load_recipe("r.yaml"))
    assert re.fullmatch("[0-9a-f]{16}", expected)
    settings = yaml.safe_load(GOOD.replace("lr: 0.1", "lr: 1.0"))
    backwards = {section: dict(reversed(keys.items())) for section, keys in reversed(settings.items())}
    write(folder, json.dumps(backwards))  # JSON is YAML
    assert recipe_hash(load_recipe("r.yaml")) == expected


@pytest.mark.parametrize("key", ["selection=best_holdout", "early_stopping_patience=3"])
@pytest.mark.parametrize("data", ["data.holdout=0.0", "data.dataset=my/folder", "data.dataset=cifar100"])
def test_the_test_split_never_decides_which_weights_a_run_ends_with(folder, key, data):
    write(folder)
    assert load_recipe("r.yaml", [f"run.{key}"]).run.uses_holdout  # the catalog's digits have a hold-out split
    name, _, value = key.partition("=")
    off = "last" if name == "selection" else "null"
    with pytest.raises(UserError) as error:
        load_recipe("r.yaml", [f"run.{key}", data])
    read = f"command line: run.{name}: read {value}, but there is no hold-out set; "
    assert str(error.value) == f"{read}write data.holdout=0.1 or run.{name}={off}"
    assert load_recipe("r.yaml", [f"run.{key}", data, "data.holdout=0.1"]).run.uses_holdout
