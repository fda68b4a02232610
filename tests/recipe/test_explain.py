"""Mistakes in recipes, on the command line and in paths: one line each, before any work is done."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from error_lines import assert_lines, error_lines
from recipe_files import GOOD, ROOT, changed, write

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS
from cskd_hf.recipe.recipe import load_recipe, parse_data

NAMES = ", ".join(METHODS)
SECTIONS = "data, transform, model, method, optimizer, scheduler, run"
OPTIMIZER_KEYS = (
    "opt, lr_base, lr, weight_decay, momentum, filter_bias_and_bn, layer_decay, layer_decay_min_scale, betas, eps, "
    "fused"
)
LR = "lr: 0.1"


# (file, line printed)
FILES: list[tuple[str | bytes, str]] = [
    (changed(LR, f"{LR}\n  momentun: 0.8"), "r.yaml:10: optimizer.momentun: unknown key, read 0.8; …"),
    (changed(LR, f"{LR}\n  3: 2"), f"r.yaml:10: optimizer.3: unknown key, read 2; allowed: {OPTIMIZER_KEYS}"),
    (GOOD + "optimiser:\n  lr: 1\n", f"r.yaml:12: optimiser: no such section; allowed: {SECTIONS}; did you mean opt…"),
    (changed("temperature", "temprature"), "r.yaml:7: method.temprature: unknown key, read 4.0; …mean temperature?"),
    # types
    (
        changed("num_epochs: 2", "num_epochs: two"),
        "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: whole number ≥ 1",
    ),
    (
        changed("num_epochs: 2", "num_epochs: 2.5"),
        "r.yaml:11: scheduler.num_epochs: read 2.5; allowed: whole number ≥ 1",
    ),
    (changed("0.1", '"0.1"'), "r.yaml:9: optimizer.lr: read '0.1'; allowed: number > 0, or null; write lr: 0.1"),
    (changed(LR, "lr: {start: 0.1}"), "r.yaml:9: optimizer.lr: read a mapping; allowed: number > 0, or null"),
    (changed("0.1", ".nan"), "r.yaml:9: optimizer.lr: read nan; allowed: a finite number"),
    (changed("temperature: 4.0", "temperature: -1"), "r.yaml:7: method.temperature: read -1; allowed: number > 0"),
    # absent or contradictory
    (changed(LR, "opt: lamb"), "r.yaml:8: optimizer.lr: missing; write optimizer.lr=0.1, or lr_base, which scales …"),
    (changed(LR, f"{LR}\n  lr_base: 0.1"), "r.yaml:9: optimizer.lr: read 0.1; allowed: null with lr_base; write …"),
    (
        changed("num_epochs: 2", "sched: cosine"),
        "r.yaml:10: scheduler.num_epochs: missing, without a …: … (whole number ≥ 1)",
    ),
    (
        changed("scheduler:\n  num_epochs: 2\n", ""),
        "r.yaml: scheduler: missing; write a section scheduler with num_epochs in it",
    ),
    (changed("optimizer:\n  lr: 0.1\n", ""), "r.yaml: optimizer: missing; write a section optimizer with lr in it"),
    (GOOD + "aa: rand-m9\n", "r.yaml:12: aa: no such section; auto_augment belongs to transform; write transform.a…"),
    (GOOD + "backbone:\n  type: ResNet\n", "r.yaml:12: backbone: no such …; write 'model.model_name=…'"),
    (GOOD + "trainer:\n  gpus: 1\n", f"r.yaml:12: trainer: no such section; allowed: {SECTIONS}"),
    (GOOD + "run:\n", "r.yaml:12: run: read null; allowed: a section with keys; write output_dir: …"),
    (changed("data:\n  dataset: digits", "data: digits"), "r.yaml:1: data: read 'digits'; allowed: a section with …"),
    (changed("  name: cskd\n", ""), f"r.yaml:5: method: no name; allowed names: {NAMES}"),
    (changed("name: cskd", "name: csdk"), f"r.yaml:6: method.name: read 'csdk'; allowed: {NAMES}; did you mean cskd?"),
    # YAML
    ("", "r.yaml: empty; a recipe has the sections data, model, method, optimizer and scheduler"),
    ("# nothing\n", "r.yaml: empty; …"),
    ("- data\n- model\n", "r.yaml: read a list; write a mapping of sections (data: …, model: …)"),
    ("digits\n", "r.yaml: read a single value; write a mapping of sections (data: …"),
    (f"{GOOD}---\n{GOOD}", "r.yaml:12: not YAML: expected a single document in the stream, but found …"),
    (
        changed(LR, f"{LR}\n  opt: lamb\n  lr: 0.2"),
        "r.yaml:11: optimizer.lr: duplicate key, first at r.yaml:9; delete one",
    ),
    (GOOD + "data:\n  dataset: cub200\n", "r.yaml:12: data: duplicate key, first at r.yaml:1; delete one"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "r.yaml: cannot be read as text: 'utf-8' codec can't decode …"),
    ("data:\n  dataset: a\x00\n", "r.yaml:2: not YAML: unacceptable character #x0000: …"),
    ("data: [1, 2\nmodel: {", "r.yaml:2: not YAML: while parsing a flow sequence, …; close the bracket, or …"),
    (changed(LR, f"{LR}\n opt: lamb"), "r.yaml:10: not YAML: while parsing a block mapping, expected <block end>, …"),
    (
        changed("  lr", "\tlr"),
        "r.yaml:9: not YAML: while scanning for the next token, found character '\\t' …; indent with spaces, …",
    ),
    ("data: &d\n  dataset: *d\n", "r.yaml:1: nested too deep; a recipe has two levels…"),
    (changed("0.1", "!!float x"), "r.yaml:9: not YAML: the value does not fit its tag: …"),
    (changed("digits", "!!python/object:os.system x"), "r.yaml:2: not YAML: could not determine a constructor …"),
]

PATHS = [
    ("cub200_resnet81.yaml", "cub200_resnet81.yaml: no such recipe; did you mean recipes/cub200_resnet18.yaml?"),
    ("recipes/cub200_resnet81", "recipes/cub200_resnet81: no such recipe; did you mean recipes/cub200_resnet18.…"),
    ("other/cub200_resnet18.yaml", "other/cub200_resnet18.yaml: no such recipe; did you mean recipes/cub200_…"),
    ("cub_resnet18", "cub_resnet18: no such recipe; did you mean recipes/cub200_resnet18.yaml?"),
    ("Digits_ResNet10.yml", "Digits_ResNet10.yml: no such recipe; did you mean recipes/digits_resnet10.yaml?"),
    ("recipes\\digits_resnet10.yaml", "recipes\\digits_…: no such recipe; did you mean recipes/digits_resnet10.yaml?"),
    ("imagenet", "imagenet: no such recipe; did you mean recipes/imagenet_convnext_tiny.yaml, recipes/…, recipes/…?"),
    ("nowhere.yaml", "nowhere.yaml: no such recipe; cskd-train --help lists the shipped ones"),
    ("run.seed=1", "run.seed=1: no such recipe; write the recipe first, then the overrides"),
    ("r.yaml/r.yaml", "r.yaml/r.yaml: no such recipe; …"),
    ("long" * 200, "long…long: no such recipe; …"),
    ("recipes", "recipes: a folder, not a recipe; to train on its images, write finetune data.dataset=recipes"),
    ("", ".: a folder, not a recipe; name a YAML file in it"),
]

SEVERAL = changed("dataset:", "datset:").replace("num_epochs: 2", "num_epochs: two")
SEVERAL_LINES = [
    "r.yaml:1: data.dataset: missing, without a default; write dataset: … (text)",
    "r.yaml:2: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
    "command line: optimizer.lr: read -1; allowed: number > 0, or null",
    "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: whole number ≥ 1",
    "command line: run.seeed: unknown key, read 1; allowed: output_dir, seed, …; did you mean seed?",
]


@pytest.mark.parametrize(("content", "line"), FILES, ids=[line[:40] for _, line in FILES])
def test_a_wrong_recipe_is_one_line(content, line, folder, capsys):
    write(folder, content)
    assert_lines(error_lines(capsys, "r.yaml"), [line])


@pytest.mark.parametrize(("path", "line"), PATHS)
def test_a_wrong_path_is_one_line_with_a_suggestion(path, line, folder, capsys):
    write(folder)
    (folder / "recipes").mkdir()
    assert_lines(error_lines(capsys, path), [line])


@pytest.mark.parametrize("command", ["recipe", "train", "check"])
def test_every_command_prints_all_mistakes_and_exits_with_2(command, tmp_path):
    write(tmp_path, SEVERAL)
    result = subprocess.run(
        [sys.executable, "-m", f"cskd_hf.{command}", "r.yaml", "optimizer.lr=-1", "run.seeed=1"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "RANK"} | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert_lines(result.stderr.splitlines(), SEVERAL_LINES)
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]


@pytest.mark.parametrize(
    ("rank", "world", "named"),
    [("0", "2", False), ("1", "2", True), ("1", "1", False), ("1", None, False)],
)
def test_a_mistake_that_rank_0_does_not_make_has_the_ranks_name(folder, capsys, monkeypatch, rank, world, named):
    write(folder, "")
    monkeypatch.setattr("cskd_hf.errors.RANK_0_FIRST", 0.0)
    monkeypatch.setenv("RANK", rank)  # of a single process, it is left of something else
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    (line,) = error_lines(capsys, "r.yaml")
    assert line.startswith(f"error: process 1 on {socket.gethostname()}: r.yaml" if named else "error: r.yaml")


def test_a_data_section_alone_has_the_same_messages():
    with pytest.raises(UserError) as caught:
        parse_data({"datset": "digits", "workers": True}, source="mix")
    assert_lines(
        [f"error: {line}" for line in str(caught.value).splitlines()],
        [
            "mix: data.dataset: missing, without a default; write dataset: … (text)",
            "mix: data.workers: read true; allowed: whole number ≥ 0, or auto",
            "mix: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
        ],
    )


@pytest.mark.parametrize("name", ["cross_entropy", "cskd", "mutual_cskd"])
def test_a_modern_recipe_is_a_few_keys_of_the_method(name):
    keys = ["smoothing=0.1", "mixup_alpha=0.2", "cutmix_alpha=1.0"]
    method = load_recipe("digits_resnet10", [f"method={{name: {name}}}", *(f"method.{key}" for key in keys)]).method
    assert (method.name, method.smoothing, method.mixup_alpha, method.cutmix_alpha) == (name, 0.1, 0.2, 1.0)
