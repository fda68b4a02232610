"""What a recipe's words and numbers mean, and what an override on the command line changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import GOOD, changed, own_folder, write

from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import load_recipe

folder = pytest.fixture(own_folder)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("+.5", 0.5),
        ("3.", 3.0),
        ("1_000.5", 1000.5),
        ("2", 2.0),
    ],
)
def test_a_number_is_a_number_however_it_is_written(text: str, value: float, folder: Path) -> None:
    write(folder, changed("lr: 0.1", f"lr: {text}"))
    assert load_recipe("r.yaml").optimizer.lr == value
    write(folder)
    lr = load_recipe("r.yaml", [f"optimizer.lr={text}"]).optimizer.lr
    assert lr == value
    assert type(lr) is float


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "y", "2020-01-01", "0x10", "1:30", "NaN", "._"])
def test_a_word_stays_a_word(word: str, folder: Path) -> None:
    write(folder, changed("dataset: digits", f"dataset: {word}"))
    assert load_recipe("r.yaml").data.dataset == word


def test_mixed_precision_no_is_the_word_that_accelerate_knows(folder: Path) -> None:
    write(folder, GOOD + "run:\n  mixed_precision: no\n")
    assert load_recipe("r.yaml").run.mixed_precision == "no"


def test_a_dotted_override_changes_one_key_and_the_last_one_wins(folder: Path) -> None:
    write(folder)
    recipe = load_recipe("r.yaml", ["optimizer.lr=0.5", "data.holdout=0.2", "optimizer.lr=0.25", "run.seed=7"])
    before = load_recipe("r.yaml").to_dict()
    before["optimizer"]["lr"], before["data"]["holdout"], before["run"]["seed"] = 0.25, 0.2, 7
    before["run"]["output_dir"] = "runs/r-cskd-seed7"
    assert recipe.to_dict() == before


def test_an_override_of_a_section_replaces_it_whole(folder: Path) -> None:
    write(folder, changed("temperature: 4.0", "temperature: 9.0"))
    assert load_recipe("r.yaml", ["method={name: cskd}"]).method == METHODS["cskd"]()
    assert load_recipe("r.yaml", ["method={name: cross_entropy, smoothing: 0.1}"]).to_dict()["method"] == {
        "name": "cross_entropy",
        "smoothing": 0.1,
    }
    assert load_recipe("r.yaml", ["method={name: cskd}", "method.temperature=2"]).to_dict()["method"] == {
        "name": "cskd",
        "temperature": 2.0,
        "distill_loss_weight": 1.0,
        "batch_norm": "separate",
    }


def test_an_override_may_supply_a_section_that_the_file_lacks(folder: Path) -> None:
    write(folder, changed("optimizer:\n  lr: 0.1\n", ""))
    assert load_recipe("r.yaml", ["optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_editors_of_other_systems_write_recipes_too(encoding: str, newline: str, folder: Path) -> None:
    write(folder)
    expected = load_recipe("r.yaml")
    write(folder, GOOD.replace("\n", newline).encode(encoding))
    assert load_recipe("r.yaml") == expected


def test_a_recipe_is_frozen(folder: Path) -> None:
    write(folder)
    recipe = load_recipe("r.yaml")
    with pytest.raises(ValueError, match="frozen"):
        recipe.optimizer.lr = 1.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        recipe.method = METHODS["cross_entropy"]()  # type: ignore[misc]


def test_the_run_folder_is_named_after_recipe_method_and_seed_unless_said(folder: Path) -> None:
    write(folder)
    overrides = ["method={name: cross_entropy}", "run.seed=2"]
    assert load_recipe("r.yaml", overrides).run.output_dir == "runs/r-cross_entropy-seed2"
    assert load_recipe("r.yaml", [*overrides, "run.output_dir=elsewhere"]).run.output_dir == "elsewhere"
