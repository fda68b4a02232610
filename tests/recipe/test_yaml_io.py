"""How values in recipes and overrides are read."""

from __future__ import annotations

import pytest
from recipe_files import GOOD, changed, write

from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import load_recipe


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
def test_every_spelling_of_a_number_is_a_number(text, value, folder):
    write(folder, changed("lr: 0.1", f"lr: {text}"))
    assert load_recipe("r.yaml").optimizer.lr == value
    lr = load_recipe("r.yaml", [f"optimizer.lr={text}"]).optimizer.lr
    assert (lr, type(lr)) == (value, float)


@pytest.mark.parametrize("word", ["no", "off", "yes", "on", "y", "2020-01-01", "0x10", "1:30", "NaN", "._", "="])
def test_yaml_1_1_booleans_dates_and_numbers_are_words(word, folder):
    write(folder, changed("dataset: digits", f"dataset: {word}"))
    assert load_recipe("r.yaml").data.dataset == word


def test_mixed_precision_no_is_accelerates_word(folder):
    write(folder, GOOD + "run:\n  mixed_precision: no\n")
    assert load_recipe("r.yaml").run.mixed_precision == "no"


def test_anchors_and_merge_keys_work(folder):
    write(folder, changed("  name: cskd", "  <<: &cskd {name: cskd, temperature: 1}"))
    assert load_recipe("r.yaml").method == METHODS["cskd"](temperature=4.0)


def test_a_dotted_override_changes_one_key_and_the_last_one_wins(folder):
    write(folder)
    expected = load_recipe("r.yaml").to_dict()
    expected["optimizer"]["lr"], expected["data"]["holdout"], expected["run"]["seed"] = 0.25, 0.2, 7
    expected["run"]["output_dir"] = "runs/digits_r-cskd-seed7"
    recipe = load_recipe("r.yaml", ["optimizer.lr=0.5", "data.holdout=0.2", "optimizer.lr=0.25", "run.seed=7"])
    assert recipe.to_dict() == expected


@pytest.mark.parametrize(
    ("overrides", "method"),
    [
        (["method={name: cskd}"], METHODS["cskd"]()),
        (["method={name: cross_entropy, smoothing: 0.1}"], METHODS["cross_entropy"](smoothing=0.1)),
        (["method={name: cskd}", "method.temperature=2"], METHODS["cskd"](temperature=2.0)),
    ],
)
def test_a_section_override_replaces_the_whole_section(overrides, method, folder):
    write(folder, changed("temperature: 4.0", "temperature: 9.0"))
    assert load_recipe("r.yaml", overrides).method == method


def test_an_override_can_add_a_section(folder):
    write(folder, changed("optimizer:\n  lr: 0.1\n", ""))
    assert load_recipe("r.yaml", ["optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_marks_and_windows_newlines_are_accepted(encoding, newline, folder):
    write(folder)
    expected = load_recipe("r.yaml")
    write(folder, GOOD.replace("\n", newline).encode(encoding))
    assert load_recipe("r.yaml") == expected
