from __future__ import annotations

import json
from pathlib import Path

import pytest
from summaries import SUMMARY, make_recipe, summary_without_holdout

from cskd_hf.errors import UserError
from cskd_hf.evaluation.metrics import DEFINITIONS
from cskd_hf.recipe.recipe import dump_recipe, parse_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.runs.recipe_differences import recipe_differences
from cskd_hf.runs.summary import MetricValues, Summary, read_recipe, read_summary, write_summary


@pytest.mark.parametrize("summary", [SUMMARY, summary_without_holdout()], ids=["holdout", "no holdout"])
def test_a_summary_reads_back_as_written(tmp_path: Path, summary: Summary) -> None:
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary


def test_the_summary_holds_every_metric() -> None:
    assert list(MetricValues.model_fields) == list(DEFINITIONS)
    assert SUMMARY.metric("top5_error") == 11
    assert SUMMARY.metric("top5_error_scaled") == 31
    assert summary_without_holdout().metric("ece_scaled") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"summary\.json: cannot be read"),
        ("{}", r"summary\.json: recipe_hash: Field required; the file is truncated or of another version"),
        ('{"seed"', r"summary\.json: Invalid JSON"),
    ],
)
def test_a_damaged_summary_is_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "summary.json").write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        read_summary(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_summary_must_match_the_recipe_in_its_folder(tmp_path: Path) -> None:
    dump_recipe(make_recipe(tmp_path), tmp_path / "recipe.yaml")
    recipe = read_recipe(tmp_path)
    assert recipe == make_recipe(tmp_path)
    write_summary(tmp_path, SUMMARY.model_copy(update={"recipe_hash": recipe_hash(recipe)}))
    assert read_summary(tmp_path, recipe).seed == SUMMARY.seed
    with pytest.raises(UserError, match=r"recipe_hash is \w{16}, but recipe\.yaml in that folder has \w{16}"):
        read_summary(tmp_path, recipe.replace(run={"seed": 9}))


def test_a_summary_of_a_later_version_is_readable(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY.model_dump(mode="json") | {"new": 1}))
    assert read_summary(tmp_path) == SUMMARY


def test_differences_are_the_settings_that_change_the_experiment(tmp_path: Path) -> None:
    new = make_recipe(tmp_path)
    assert recipe_differences(new.replace(run={"logging_steps": 7, "output_dir": "elsewhere"}), new) == []
    assert recipe_differences(new.replace(run={"model_ema_warmup": False}), new) == []  # no average to warm up
    resolved = new.replace(model={"num_classes": 10}, run={"mixed_precision": "bf16"})
    assert recipe_differences(resolved, new) == []  # `new` does not know them yet
    assert [str(difference) for difference in recipe_differences(new, resolved)] == [
        "model.num_classes: null in the folder, 10 expected",
        'run.mixed_precision: null in the folder, "bf16" expected',
    ]


def test_settings_of_another_method_are_absent(tmp_path: Path) -> None:
    new = make_recipe(tmp_path)
    old = new.model_copy(update={"method": make_recipe(tmp_path, method="cross_entropy").method})
    differences = {difference.key: difference for difference in recipe_differences(old, new)}
    assert differences["method.name"][1:] == ('"cross_entropy"', '"cskd"')
    assert differences["method.temperature"][1:] == ("absent", "4.0")


@pytest.mark.parametrize("removed", ["transform: re_prob", "method: smoothing", "data: value_range"])
def test_a_resolved_recipe_from_before_a_key_is_the_same_experiment(tmp_path: Path, removed: str) -> None:
    section, key = removed.split(": ")
    recipe = resolve(make_recipe(tmp_path))
    earlier = recipe.to_dict()
    del earlier[section][key]
    old = parse_recipe(earlier, source="recipe.yaml")
    assert recipe_differences(old, recipe) == []
    assert recipe_hash(old) == recipe_hash(recipe)
