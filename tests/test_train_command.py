"""`cskd-train` without a recipe, or with --help: fast, and with the names that one writes."""

from __future__ import annotations

import pytest
from recipe_files import SHIPPED

from cskd_hf import train
from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import Recipe


def test_the_help_names_sections_methods_recipes_and_examples_in_80_columns(capsys):
    with pytest.raises(SystemExit, match="0"):
        train.main(["--help"])
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    words = set(text.replace(",", " ").split())
    assert {*Recipe.model_fields, *METHODS, *(path.stem for path in SHIPPED)} <= words
    assert {"data.dataset=FOLDER", "optimizer.lr=0.05", "run.max_hours=1"} <= words


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no recipe; write cskd-train RECIPE; cskd-train --help shows what may follow"),
        (["--epochs"], "read --epochs, but no recipe; write cskd-train RECIPE; …"),
        (["--epochs", "digits_resnet10"], "--epochs: not an override; write section.key=value, for example …"),
        (["digits_resnet10", "--optimizer.lr=1"], "--optimizer.lr=1: not an override; write optimizer.lr=1, …"),
        (["optimizer.lr=1", "digits_resnet10"], "optimizer.lr=1: no such recipe; write the recipe first, …"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, message):
    with pytest.raises(UserError) as caught:
        train.main(argv)
    assert str(caught.value).startswith(message.rstrip("…"))
