"""Recipes: what a user can get wrong is told on one line; what is shipped is the paper's protocol."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from operator import ge, gt, le, lt
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch import nn

import cskd_hf
import cskd_hf.recipe
import cskd_hf.train
from cskd_hf.data.load import resolve
from cskd_hf.errors import UserError, run_command
from cskd_hf.methods import METHODS
from cskd_hf.models.factory import create_backbone
from cskd_hf.recipe import Recipe, dump_recipe, identity, load_recipe, recipe_hash

ROOT = Path(cskd_hf.__file__).resolve().parents[1]
SHIPPED = sorted((ROOT / "recipes").glob("**/*.yaml"))

# Line numbers below count from `data:` on line 1.
GOOD = """\
data:
  dataset: digits
model:
  model_name: preact_resnet10_32px
method:
  name: cskd
  temperature: 4.0
optimizer:
  lr: 0.1
scheduler:
  num_epochs: 2
"""
COMMANDS = {"recipe": cskd_hf.recipe.main, "train": cskd_hf.train.main}
SECTIONS = "data, transform, model, method, optimizer, scheduler, run"
OPTIMIZER_KEYS = "opt, lr_base, lr, weight_decay, momentum, filter_bias_and_bn, layer_decay, betas, eps, fused"
NOT_AN_OVERRIDE = "not an override; write section.key=value, for example optimizer.lr=0.05"


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


# what is wrong: (file's content or None, overrides, the lines to be printed; in a line, … stands for anything)
MISTAKES: dict[str, tuple[str | bytes, list[str], list[str]]] = {
    "unknown key": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  momentun: 0.8\n"),
        [],
        [f"r.yaml:10: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?"],
    ),
    "unknown key on the command line": (
        GOOD,
        ["optimizer.momentun=0.8"],
        [f"command line: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?"],
    ),
    "unknown section": (
        GOOD + "optimiser:\n  lr: 1\n",
        [],
        [f"r.yaml:12: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"],
    ),
    "unknown section on the command line": (
        GOOD,
        ["optimiser.lr=1"],
        [f"command line: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"],
    ),
    "key that is a number": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  3: 2\n"),
        [],
        [f"r.yaml:10: optimizer.3: unknown key, read 2; allowed: {OPTIMIZER_KEYS}"],
    ),
    "wrong type": (
        changed("num_epochs: 2", "num_epochs: two"),
        [],
        ["r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer"],
    ),
    "quoted number": (changed("0.1", '"0.1"'), [], ["r.yaml:9: optimizer.lr: read '0.1'; allowed: a valid number"]),
    "number for a word": (
        GOOD,
        ["data.revision=123456"],
        ["command line: data.revision: read 123456; allowed: a valid string"],
    ),
    "truth for a count": (
        GOOD,
        ["data.workers=true"],
        ["command line: data.workers: read true; allowed: a valid integer, or auto"],
    ),
    "fraction for a count": (
        changed("num_epochs: 2", "num_epochs: 2.5"),
        [],
        ["r.yaml:11: scheduler.num_epochs: read 2.5; allowed: a valid integer"],
    ),
    "list too short": (
        GOOD,
        ["transform.input_size=[3, 32]"],
        ["command line: transform.input_size: read [3, 32]; allowed: a list of 3"],
    ),
    "list too long": (
        GOOD,
        ["transform.mean=[0.1, 0.2, 0.3, 0.4]"],
        ["command line: transform.mean: read [0.1, 0.2, 0.3, 0.4]; allowed: a list of 3"],
    ),
    "word for a list": (
        GOOD,
        ["run.report_to=wandb"],
        ["command line: run.report_to: read 'wandb'; allowed: a list"],
    ),
    "images that are not RGB": (
        GOOD,
        ["transform.input_size=[1, 32, 32]"],
        ["command line: transform.input_size: read [1, 32, 32]; allowed: images are RGB: write [3, height, width] …"],
    ),
    "third level": (
        changed("lr: 0.1", "lr: {start: 0.1}"),
        [],
        ["r.yaml:9: optimizer.lr: read a mapping; allowed: a valid number"],
    ),
    "no rate": (
        changed("  lr: 0.1\n", "  opt: lamb\n"),
        [],
        ["r.yaml:8: optimizer.lr: missing; write lr, or lr_base, which the global batch scales"],
    ),
    "two rates": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  lr_base: 0.1\n"),
        [],
        ["r.yaml:9: optimizer.lr: read 0.1; allowed: lr, or lr_base, which the global batch scales"],
    ),
    "missing key": (
        changed("  num_epochs: 2\n", "  sched: cosine\n"),
        [],
        ["r.yaml:10: scheduler.num_epochs: missing; it has no default"],
    ),
    "missing section": (
        changed("scheduler:\n  num_epochs: 2\n", ""),
        [],
        ["r.yaml: scheduler: missing; it has no default"],
    ),
    "section that is empty": (
        GOOD + "run:\n",
        [],
        ["r.yaml:12: run: read null; allowed: a section with keys of its own"],
    ),
    "section that is one value": (
        changed("data:\n  dataset: digits\n", "data: digits\n"),
        [],
        ["r.yaml:1: data: read 'digits'; allowed: a section with keys of its own"],
    ),
    "value out of range": (GOOD, ["optimizer.lr=0"], ["command line: optimizer.lr: read 0; allowed: greater than 0"]),
    "method's value out of range": (
        changed("temperature: 4.0", "temperature: -1"),
        [],
        ["r.yaml:7: method.temperature: read -1; allowed: greater than 0"],
    ),
    "share out of range": (
        GOOD,
        ["data.holdout=0.7"],
        ["command line: data.holdout: read 0.7; allowed: less than or equal to 0.5, or a valid string"],
    ),
    "NaN": (changed("0.1", ".nan"), [], ["r.yaml:9: optimizer.lr: read nan; allowed: a finite number"]),
    "infinity": (GOOD, ["optimizer.lr=.inf"], ["command line: optimizer.lr: read inf; allowed: a finite number"]),
    "number that overflows": (
        GOOD,
        ["optimizer.lr=1e999"],
        ["command line: optimizer.lr: read inf; allowed: a finite number"],
    ),
    "minus infinity in a method": (
        GOOD,
        ["method.distill_loss_weight=-.inf"],
        ["command line: method.distill_loss_weight: read -inf; allowed: a finite number"],
    ),
    "NaN in a list": (
        GOOD,
        ["optimizer.betas=[0.9, .nan]"],
        ["command line: optimizer.betas: read [0.9, nan]; allowed: a finite number"],
    ),
    "word that is none of the choices": (
        GOOD,
        ["scheduler.sched=multi_step"],
        [
            "command line: scheduler.sched: read 'multi_step'; allowed: cosine, tanh, step, multistep, poly or none; "
            "did you mean multistep?"
        ],
    ),
    "mode or truth": (
        GOOD,
        ["run.compile=yes"],
        [
            "command line: run.compile: read 'yes'; allowed: a valid boolean, or default, reduce-overhead or "
            "max-autotune"
        ],
    ),
    "another method's field": (
        GOOD,
        ["method.name=cross_entropy"],
        [
            "r.yaml:7: method.temperature: read 4.0, but cross_entropy has no such field, …cskd… has; "
            "allowed: name, smoothing (to leave another method's fields behind: 'method={name: cross_entropy}')"
        ],
    ),
    "another method's field in a replaced section": (
        GOOD,
        ["method={name: cross_entropy, temperature: 4}"],
        ["command line: method.temperature: read 4, but cross_entropy has no such field, …"],
    ),
    "misspelt field of a method": (
        changed("temperature", "temprature"),
        [],
        [
            "r.yaml:7: method.temprature: unknown key, read 4.0; allowed: name, temperature, distill_loss_weight, "
            "batch_norm; "
            "did you mean temperature?"
        ],
    ),
    "method without a name": (
        changed("  name: cskd\n", ""),
        [],
        [f"r.yaml:5: method: no name; allowed names: {', '.join(METHODS)}"],
    ),
    "method that is a word": (
        GOOD,
        ["method=cskd"],
        [f"command line: method: read 'cskd'; allowed: a section with a name, which is one of {', '.join(METHODS)}"],
    ),
    "unknown method": (
        changed("name: cskd", "name: csdk"),
        [],
        [f"r.yaml:6: method.name: read 'csdk'; allowed: {', '.join(METHODS)}; did you mean cskd?"],
    ),
    "unknown method on the command line": (
        GOOD,
        ["method.name=csdk"],
        [f"command line: method.name: read 'csdk'; allowed: {', '.join(METHODS)}; did you mean cskd?"],
    ),
    "empty file": ("", [], ["r.yaml: empty; a recipe has the sections data, model, method, optimizer and scheduler"]),
    "file of comments": ("# nothing\n", [], ["r.yaml: empty; …"]),
    "list": ("- data\n- model\n", [], ["r.yaml: a list, where a mapping of sections is needed (data: …, model: …)"]),
    "one value": ("digits\n", [], ["r.yaml: a single value, where a mapping of sections is needed (data: …"]),
    "two documents": (
        GOOD + "---\n" + GOOD,
        [],
        ["r.yaml:12: not YAML: expected a single document in the stream, but found another document"],
    ),
    "key written twice": (
        changed("  lr: 0.1\n", "  lr: 0.1\n  momentum: 0.8\n  lr: 0.2\n"),
        [],
        ["r.yaml:11: optimizer.lr: written twice, first on line 9; keep one"],
    ),
    "section written twice": (
        GOOD + "data:\n  dataset: cub200\n",
        [],
        ["r.yaml:12: data: written twice, first on line 1; keep one"],
    ),
    "key written twice in an override": (
        GOOD,
        ["method={name: cskd, name: cross_entropy}"],
        ["command line:1: method.name: written twice, first on line 1; keep one"],
    ),
    "binary file": (b"\x89PNG\r\n\x1a\n\x00\xff", [], ["r.yaml: cannot be read as text: 'utf-8' codec can't decode …"]),
    "zero byte": ("data:\x00\n", [], ["r.yaml: not YAML: unacceptable character #x0000: …"]),
    "broken YAML": (
        "data: [1, 2\nmodel: {",
        [],
        ["r.yaml:2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"],
    ),
    "broken indentation": (
        changed("  lr: 0.1\n", "  lr: 0.1\n opt: lamb\n"),
        [],
        ["r.yaml:10: not YAML: while parsing a block mapping, expected <block end>, but found '<block mapping start>'"],
    ),
    "tabs": (
        changed("  lr: 0.1\n", "\tlr: 0.1\n"),
        [],
        ["r.yaml:9: not YAML: while scanning for the next token, found character '\\t' that cannot start any token"],
    ),
    "anchor inside itself": ("data: &d\n  dataset: *d\n", [], ["r.yaml: nested too deep; a recipe has two levels…"]),
    "tag that does not fit": (changed("0.1", "!!float x"), [], ["r.yaml: not YAML: a value does not fit its tag: …"]),
    "tag that runs code": (changed("digits", "!!python/object:os.system x"), [], ["r.yaml:2: not YAML: could not …"]),
    "override without an equals sign": (GOOD, ["optimizer.lr"], [f"optimizer.lr: {NOT_AN_OVERRIDE}"]),
    "override of three levels": (GOOD, ["a.b.c=1"], [f"a.b.c=1: {NOT_AN_OVERRIDE}"]),
    "override without a key": (GOOD, ["optimizer.=1"], [f"optimizer.=1: {NOT_AN_OVERRIDE}"]),
    "override of a key where the section is one value": (
        changed("data:\n  dataset: digits\n", "data: digits\n"),
        ["data.dataset=cub200"],
        ["data.dataset=cub200: data holds 'digits', which has no keys"],
    ),
    "override of a key where the section is empty": (
        GOOD + "run:\n",
        ["run.seed=1"],
        ["run.seed=1: run holds null, which has no keys"],
    ),
    "override without a value": (
        GOOD,
        ["optimizer.lr="],
        ["command line: optimizer.lr: read null; allowed: lr, or lr_base, which the global batch scales"],
    ),
    "override with a space before the equals sign": (
        GOOD,
        ["optimizer.lr =fast"],
        ["command line: optimizer.lr: read 'fast'; allowed: a valid number"],
    ),
    "override that is broken YAML": (
        GOOD,
        ["optimizer.betas=[0.9"],
        ["optimizer.betas=[0.9: the value is not YAML: while parsing a flow sequence, expected ',' or ']', but got …"],
    ),
    "several mistakes": (
        changed("dataset:", "datset:").replace("num_epochs: 2", "num_epochs: two"),
        ["optimizer.lr=-1", "run.seeed=1"],
        [
            "r.yaml:1: data.dataset: missing; it has no default",
            "r.yaml:2: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
            "command line: optimizer.lr: read -1; allowed: greater than 0",
            "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer",
            "command line: run.seeed: unknown key, read 1; allowed: output_dir, seed, …; did you mean seed?",
        ],
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    return tmp_path


def write(folder: Path, content: str | bytes = GOOD) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


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


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """`python …` in a folder, as a user would."""
    environment = {name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True)


# mistakes


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
    assert "cskd_hf.recipe_errors" in imported
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


# values and overrides


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


# what is written, and what identifies a run


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
    "data": {"workers": 7, "worker_type": "thread"},
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


# the schema


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    result = run(Path.cwd(), "-m", "cskd_hf.recipe", "--schema")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


COMPARISONS = {"minimum": ge, "maximum": le, "exclusiveMinimum": gt, "exclusiveMaximum": lt}


def violations(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "") -> list[str]:
    """What JSON Schema 2020-12 has against a value, for the keywords that our schema uses; another one is an error."""
    schema = dict(schema)
    for annotation in ("title", "description", "default", "discriminator", "$defs"):
        schema.pop(annotation, None)
    found = []
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    types = {
        "object": isinstance(value, dict),
        "array": isinstance(value, list),
        "string": isinstance(value, str),
        "boolean": isinstance(value, bool),
        "null": value is None,
        "number": is_number,
        "integer": is_number and value == int(value),
    }
    for keyword, rule in schema.items():
        match keyword:
            case "$ref":
                found += violations(value, root["$defs"][rule.removeprefix("#/$defs/")], root, at)
            case "type":
                found += [] if types[rule] else [f"{at}: {value!r} is no {rule}"]
            case "enum" | "const":
                found += [] if value in (rule if keyword == "enum" else [rule]) else [f"{at}: {value!r} is not {rule}"]
            case "anyOf" | "oneOf":
                fitting = sum(not violations(value, one, root, at) for one in rule)
                found += [] if fitting == 1 or (fitting and keyword == "anyOf") else [f"{at}: fits {fitting} of {rule}"]
            case "properties":
                for name in value.keys() & rule.keys() if types["object"] else ():
                    found += violations(value[name], rule[name], root, f"{at}.{name}")
            case "additionalProperties":
                assert rule is False
                known = schema.get("properties", {})
                found += [f"{at}: unknown {name}" for name in value if name not in known] if types["object"] else []
            case "required":
                found += [f"{at}: no {name}" for name in rule if name not in value] if types["object"] else []
            case "items":
                for position, item in enumerate(value) if types["array"] else ():
                    found += violations(item, rule, root, f"{at}[{position}]")
            case "prefixItems":
                for position, (item, one) in enumerate(zip(value, rule, strict=False)) if types["array"] else ():
                    found += violations(item, one, root, f"{at}[{position}]")
            case "minItems" | "maxItems":
                fits = not types["array"] or (len(value) >= rule if keyword == "minItems" else len(value) <= rule)
                found += [] if fits else [f"{at}: {keyword} {rule}"]
            case "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum":
                fits = not is_number or COMPARISONS[keyword](value, rule)
                found += [] if fits else [f"{at}: {value} against {keyword} {rule}"]
            case _:
                raise AssertionError(f"{at}: {keyword} is no keyword of JSON Schema, or this test does not know it")
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_schema_accepts_every_shipped_recipe_as_written_and_as_resolved(path: Path, schema: dict[str, Any]) -> None:
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert violations(written, schema, schema) == []
    assert violations(resolve(load_recipe(path)).to_dict(), schema, schema) == []


@pytest.mark.parametrize(
    "mistake", ["unknown key", "unknown section", "wrong type", "quoted number", "missing key", "section that is empty"]
)
def test_the_schema_refuses_what_the_recipe_refuses(mistake: str, schema: dict[str, Any]) -> None:
    assert violations(yaml.safe_load(MISTAKES[mistake][0]), schema, schema)
    assert not violations(yaml.safe_load(GOOD), schema, schema)


def test_the_schema_explains_every_section_and_names_every_method(schema: dict[str, Any]) -> None:
    assert set(schema["properties"]) == set(Recipe.model_fields)
    assert set(schema["properties"]["method"]["discriminator"]["mapping"]) == set(METHODS)
    for name, definition in schema["$defs"].items():
        assert definition["description"], name
        assert definition["additionalProperties"] is False, name


@pytest.mark.skipif(importlib.util.find_spec("jsonschema") is None, reason="needs the jsonschema package")
def test_the_schema_is_valid_json_schema(schema: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema)
    for path in SHIPPED:
        Draft202012Validator(schema).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


# the shipped recipes


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


@pytest.mark.parametrize("override", ["transform.mixup=0.2", "data.cutmix_alpha=1.0", "method.mixup_alpha=0.4"])
def test_mixing_images_under_a_method_of_hard_labels_is_told_which_methods_mix(override):
    with pytest.raises(UserError) as error:
        load_recipe("recipes/digits_resnet10.yaml", [override])
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"command line: {override.partition('=')[0]}: read ")
    assert "'method={name: mixup, mixup_alpha: 0.4}', or mixup_cskd" in line
    load_recipe("recipes/digits_resnet10.yaml", ["method={name: mixup, mixup_alpha: 0.4}"])
