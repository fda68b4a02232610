"""What a user can get wrong in a recipe is told on one line, by every command and before anything is done."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from recipe_files import changed, own_folder, run, write
from recipe_mistakes import MISTAKES

import cskd_hf.recipe
import cskd_hf.train
from cskd_hf.errors import UserError, run_command
from cskd_hf.recipe.recipe import load_recipe

folder = pytest.fixture(own_folder)

COMMANDS = {"recipe": cskd_hf.recipe.main, "train": cskd_hf.train.main}


def refuse(capsys: pytest.CaptureFixture[str], command: Callable[[Sequence[str]], int], *argv: str) -> list[str]:
    """The lines a command prints before it leaves with status 2."""
    with pytest.raises(SystemExit) as left:
        run_command(lambda: command(argv))
    assert left.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def assert_lines(printed: Sequence[str], expected: Sequence[str]) -> None:
    assert len(printed) == len(expected), "\n".join(printed)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, f"error: {pattern}".split("…"))), line), line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_on_one_line_with_status_2_and_leaves_nothing_behind(
    mistake: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, overrides, expected = MISTAKES[mistake]
    write(folder, content)
    assert_lines(refuse(capsys, COMMANDS[command], "r.yaml", *overrides), expected)
    assert [path.name for path in folder.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("cub200_resnet81.yaml", "cub200_resnet81.yaml: no such recipe; did you mean recipes/cub200_resnet18.yaml?"),
        ("recipes/cub200_resnet81", "recipes/cub200_resnet81: no such recipe; did you mean recipes/cub200_resnet18.…"),
        ("other/cub200_resnet18.yaml", "other/cub200_resnet18.yaml: no such recipe; did you mean recipes/cub200_…"),
        ("nowhere.yaml", "nowhere.yaml: no such recipe; shipped recipes: …cub200_resnet18, …"),
        ("r.yaml/r.yaml", "r.yaml/r.yaml: no such recipe; …"),
        ("long" * 200, "long…long: no such recipe; …"),
        ("recipes", "recipes: a folder, not a recipe; name a YAML file in it"),
        ("", ".: a folder, not a recipe; name a YAML file in it"),
    ],
)
def test_a_path_that_is_no_recipe_is_told_with_what_was_meant(
    path: str, line: str, command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder)
    (folder / "recipes").mkdir()
    assert_lines(refuse(capsys, COMMANDS[command], path), [line])


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("mistake", ["several mistakes", "binary file"])
def test_the_real_commands_refuse_a_mistake_without_traceback(mistake: str, command: str, tmp_path: Path) -> None:
    content, overrides, expected = MISTAKES[mistake]
    write(tmp_path, content)
    result = run(tmp_path, "-m", f"cskd_hf.{command}", "r.yaml", *overrides)
    assert result.returncode == 2
    assert result.stdout == ""
    assert_lines(result.stderr.splitlines(), expected)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


def test_training_refuses_a_mistake_before_torch_is_imported(tmp_path: Path) -> None:
    write(tmp_path, changed("0.1", "fast"))
    result = run(tmp_path, "-X", "importtime", "-m", "cskd_hf.train", "r.yaml")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: r.yaml:9: optimizer.lr: read 'fast'; allowed: a valid number"
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", result.stderr, flags=re.MULTILINE))
    assert "cskd_hf.recipe.explain" in imported
    assert imported.isdisjoint({"torch", "timm", "numpy", "datasets", "accelerate", "transformers"})


def test_only_the_first_of_several_processes_tells_a_mistake(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, "")
    monkeypatch.setenv("RANK", "1")
    assert refuse(capsys, cskd_hf.train.main, "r.yaml") == []
    monkeypatch.setenv("RANK", "0")
    assert len(refuse(capsys, cskd_hf.train.main, "r.yaml")) == 1


def test_a_replaced_section_forgets_the_lines_of_the_old_one(folder: Path) -> None:
    write(folder)
    with pytest.raises(UserError) as refused:
        load_recipe("r.yaml", ["method={name: cskd, temperature: 0}"])
    assert str(refused.value) == "command line: method.temperature: read 0; allowed: greater than 0"


@pytest.mark.parametrize("override", ["transform.mixup=0.2", "data.cutmix_alpha=1.0", "method.mixup_alpha=0.4"])
def test_mixing_images_under_a_method_of_hard_labels_is_told_which_methods_mix(override):
    with pytest.raises(UserError) as error:
        load_recipe("recipes/digits_resnet10.yaml", [override])
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"command line: {override.partition('=')[0]}: read ")
    assert "'method={name: mixup, mixup_alpha: 0.4}', or mixup_cskd" in line
    load_recipe("recipes/digits_resnet10.yaml", ["method={name: mixup, mixup_alpha: 0.4}"])
