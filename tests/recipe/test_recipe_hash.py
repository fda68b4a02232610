"""The resolved recipe as it is written, and the hash by which a run is known."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from recipe_files import GOOD, SHIPPED, changed, own_folder, write

import cskd_hf.recipe
from cskd_hf.recipe.recipe import dump_recipe, identity, load_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve

folder = pytest.fixture(own_folder)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_resolved_recipe_reloads_to_an_equal_recipe(path: Path, folder: Path) -> None:
    recipe = resolve(load_recipe(path, ["run.report_to=[tensorboard]", "optimizer.weight_decay=3e-5"]))
    assert recipe.transform.mean is not None
    written = folder / "other_name.yaml"
    dump_recipe(recipe, written)
    reloaded = load_recipe(written)
    assert reloaded == recipe
    assert recipe_hash(reloaded) == recipe_hash(recipe)
    assert [path.name for path in folder.iterdir()] == [written.name]
    assert yaml.safe_load(written.read_text()) == recipe.to_dict()  # for scripts, which read it with any YAML


def test_the_command_prints_what_it_would_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder)
    assert cskd_hf.recipe.main(["r.yaml", "optimizer.lr=1e-5"]) == 0
    printed = capsys.readouterr().out
    write(folder, printed)
    assert load_recipe("r.yaml").optimizer.lr == 1e-5
    assert cskd_hf.recipe.main(["r.yaml"]) == 0
    assert capsys.readouterr().out == printed


OF_NO_CONSEQUENCE = {
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
    },
}


@pytest.mark.parametrize(("section", "key"), [(s, k) for s, keys in OF_NO_CONSEQUENCE.items() for k in keys])
def test_the_hash_ignores_what_changes_no_number(section: str, key: str, folder: Path) -> None:
    write(folder)
    recipe = load_recipe("r.yaml")
    other = recipe.replace(**{section: {key: OF_NO_CONSEQUENCE[section][key]}})
    assert other != recipe
    assert recipe_hash(other) == recipe_hash(recipe)


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
def test_the_hash_knows_what_changes_a_number(override: str, folder: Path) -> None:
    write(folder)
    assert recipe_hash(load_recipe("r.yaml", [override])) != recipe_hash(load_recipe("r.yaml"))


def test_every_other_setting_is_in_the_hash(folder: Path) -> None:
    write(folder)
    recipe = load_recipe("r.yaml")
    left_out = {
        (section, key)
        for section, keys in recipe.to_dict().items()
        for key in keys
        if key not in identity(recipe)[section]
    }
    assert left_out == {(section, key) for section, keys in OF_NO_CONSEQUENCE.items() for key in keys}


def test_the_hash_does_not_depend_on_how_the_recipe_is_written(folder: Path) -> None:
    write(folder, changed("lr: 0.1", "lr: 1"))
    expected = recipe_hash(load_recipe("r.yaml"))
    assert re.fullmatch("[0-9a-f]{16}", expected)
    settings = yaml.safe_load(GOOD.replace("lr: 0.1", "lr: 1.0"))
    backwards = {section: dict(reversed(keys.items())) for section, keys in reversed(settings.items())}
    write(folder, json.dumps(backwards))  # JSON is YAML
    assert recipe_hash(load_recipe("r.yaml")) == expected
