"""Mistakes in recipes, on the command line and in paths: one line each, before any work is done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence

import pytest
from recipe_files import GOOD, ROOT, changed, write

from cskd_hf.errors import UserError, run_command
from cskd_hf.methods import METHODS
from cskd_hf.recipe.__main__ import main
from cskd_hf.recipe.explain import REMOVED
from cskd_hf.recipe.recipe import load_recipe, parse_data

NAMES = ", ".join(METHODS)
SECTIONS = "data, transform, model, method, optimizer, scheduler, run"
OPTIMIZER_KEYS = "opt, lr_base, lr, weight_decay, momentum, filter_bias_and_bn, layer_decay, betas, eps, fused"
NOT_AN_OVERRIDE = "not an override; write section.key=value, for example optimizer.lr=0.05"
LR = "lr: 0.1"

# (override, line printed); … stands for any text
OVERRIDES = [
    (
        "optimizer.momentun=0.8",
        f"command line: optimizer.momentun: unknown key, read 0.8; allowed: {OPTIMIZER_KEYS}; did you mean momentum?",
    ),
    ("optimiser.lr=1", f"command line: optimiser: no such section; allowed: {SECTIONS}; did you mean optimizer?"),
    ("data.decode=cuda", f"command line: data.decode: {REMOVED['data.decode']}"),
    # types
    ("data.revision=123456", "command line: data.revision: read 123456; allowed: a valid string"),
    ("data.workers=true", "command line: data.workers: read true; allowed: a valid integer, or auto"),
    ("transform.input_size=[3, 32]", "command line: transform.input_size: read [3, 32]; allowed: a list of 3"),
    (
        "transform.mean=[.1, .2, .3, .4]",
        "command line: transform.mean: read [0.1, 0.2, 0.3, 0.4]; allowed: a list of 3",
    ),
    ("run.report_to=wandb", "command line: run.report_to: read 'wandb'; allowed: a list"),
    ("optimizer.lr =fast", "command line: optimizer.lr: read 'fast'; allowed: a valid number"),
    (
        "run.compile=yes",
        "command line: run.compile: read 'yes'; allowed: a valid boolean, or default, reduce-overhead or max-autotune",
    ),
    (
        "scheduler.sched=multi_step",
        "command line: scheduler.sched: read 'multi_step'; allowed: cosine, tanh, step, multistep, poly or none; "
        "did you mean multistep?",
    ),
    # ranges
    ("optimizer.lr=0", "command line: optimizer.lr: read 0; allowed: greater than 0"),
    ("optimizer.lr=.inf", "command line: optimizer.lr: read inf; allowed: a finite number"),
    ("optimizer.lr=1e999", "command line: optimizer.lr: read inf; allowed: a finite number"),
    ("optimizer.betas=[0.9, .nan]", "command line: optimizer.betas: read [0.9, nan]; allowed: a finite number"),
    ("method.distill_loss_weight=-.inf", "command line: method.distill_loss_weight: read -inf; allowed: a finite…"),
    ("data.holdout=0.7", "command line: data.holdout: read 0.7; allowed: less than or equal to 0.5, or a valid string"),
    ("transform.input_size=[1, 32, 32]", "command line: transform.input_size: read [1, 32, 32]; allowed: [3, height…"),
    ("optimizer.lr=", "command line: optimizer.lr: read null; allowed: either lr or lr_base, which scales with …"),
    # methods
    (
        "method.name=cross_entropy",
        "r.yaml:7: method.temperature: read 4.0, but cross_entropy has no such field, …cskd… have; allowed: name, "
        "smoothing, mixup_alpha, cutmix_alpha (to drop another method's fields: 'method={name: cross_entropy}')",
    ),
    (
        "method={name: cross_entropy, temperature: 4}",
        "command line: method.temperature: read 4, but cross_entropy has no such field, …",
    ),
    ("method={name: cskd, temperature: 0}", "command line: method.temperature: read 0; allowed: greater than 0"),
    ("method=cskd", f"command line: method: read 'cskd'; allowed: a section with a name, one of {NAMES}"),
    ("method.name=csdk", f"command line: method.name: read 'csdk'; allowed: {NAMES}; did you mean cskd?"),
    *(
        (
            f"{key}=0.4",
            f"command line: {key}: read 0.4, but mixing and label smoothing belong to the method; write "
            "method.mixup_alpha, method.cutmix_alpha or method.smoothing, of cross_entropy, mixup, cskd, …",
        )
        for key in ("transform.mixup", "data.cutmix_alpha", "run.label_smoothing")
    ),
    # syntax
    ("optimizer.lr", f"optimizer.lr: {NOT_AN_OVERRIDE}"),
    ("a.b.c=1", f"a.b.c=1: {NOT_AN_OVERRIDE}"),
    ("optimizer.=1", f"optimizer.=1: {NOT_AN_OVERRIDE}"),
    ("method={name: cskd, name: pskd}", "command line: method: name: duplicate key, first at …; delete one"),
    ("optimizer.betas=[0.9", "command line: optimizer.betas: not YAML: while parsing a flow sequence, expected ',' …"),
    ("optimizer.lr=!!float x", "command line: optimizer.lr: not YAML: the value does not fit its tag: …"),
]

# (file, line printed)
FILES: list[tuple[str | bytes, str]] = [
    (changed(LR, f"{LR}\n  momentun: 0.8"), "r.yaml:10: optimizer.momentun: unknown key, read 0.8; …"),
    (changed(LR, f"{LR}\n  3: 2"), f"r.yaml:10: optimizer.3: unknown key, read 2; allowed: {OPTIMIZER_KEYS}"),
    (
        changed("data:\n", "data:\n  worker_type: thread\n"),
        f"r.yaml:2: data.worker_type: {REMOVED['data.worker_type']}",
    ),
    (GOOD + "optimiser:\n  lr: 1\n", f"r.yaml:12: optimiser: no such section; allowed: {SECTIONS}; did you mean opt…"),
    (changed("temperature", "temprature"), "r.yaml:7: method.temprature: unknown key, read 4.0; …mean temperature?"),
    # types
    (
        changed("num_epochs: 2", "num_epochs: two"),
        "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer",
    ),
    (
        changed("num_epochs: 2", "num_epochs: 2.5"),
        "r.yaml:11: scheduler.num_epochs: read 2.5; allowed: a valid integer",
    ),
    (changed("0.1", '"0.1"'), "r.yaml:9: optimizer.lr: read '0.1'; allowed: a valid number"),
    (changed(LR, "lr: {start: 0.1}"), "r.yaml:9: optimizer.lr: read a mapping; allowed: a valid number"),
    (changed("0.1", ".nan"), "r.yaml:9: optimizer.lr: read nan; allowed: a finite number"),
    (changed("temperature: 4.0", "temperature: -1"), "r.yaml:7: method.temperature: read -1; allowed: greater than 0"),
    # absent or contradictory
    (changed(LR, "opt: lamb"), "r.yaml:8: optimizer.lr: missing; write either lr or lr_base, which scales with the …"),
    (changed(LR, f"{LR}\n  lr_base: 0.1"), "r.yaml:9: optimizer.lr: read 0.1; allowed: either lr or lr_base, which …"),
    (changed("num_epochs: 2", "sched: cosine"), "r.yaml:10: scheduler.num_epochs: missing; it has no default"),
    (changed("scheduler:\n  num_epochs: 2\n", ""), "r.yaml: scheduler: missing; it has no default"),
    (GOOD + "run:\n", "r.yaml:12: run: read null; allowed: a section with keys"),
    (changed("data:\n  dataset: digits", "data: digits"), "r.yaml:1: data: read 'digits'; allowed: a section with …"),
    (changed("  name: cskd\n", ""), f"r.yaml:5: method: no name; allowed names: {NAMES}"),
    (changed("name: cskd", "name: csdk"), f"r.yaml:6: method.name: read 'csdk'; allowed: {NAMES}; did you mean cskd?"),
    # YAML
    ("", "r.yaml: empty; a recipe has the sections data, model, method, optimizer and scheduler"),
    ("# nothing\n", "r.yaml: empty; …"),
    ("- data\n- model\n", "r.yaml: read a list; write a mapping of sections (data: …, model: …)"),
    ("digits\n", "r.yaml: read a single value; write a mapping of sections (data: …"),
    (f"{GOOD}---\n{GOOD}", "r.yaml:12: not YAML: expected a single document in the stream, but found another document"),
    (
        changed(LR, f"{LR}\n  opt: lamb\n  lr: 0.2"),
        "r.yaml:11: optimizer.lr: duplicate key, first at r.yaml:9; delete one",
    ),
    (GOOD + "data:\n  dataset: cub200\n", "r.yaml:12: data: duplicate key, first at r.yaml:1; delete one"),
    (b"\x89PNG\r\n\x1a\n\x00\xff", "r.yaml: cannot be read as text: 'utf-8' codec can't decode …"),
    ("data:\n  dataset: a\x00\n", "r.yaml:2: not YAML: unacceptable character #x0000: …"),
    ("data: [1, 2\nmodel: {", "r.yaml:2: not YAML: while parsing a flow sequence, expected ',' or ']', but got ':'"),
    (changed(LR, f"{LR}\n opt: lamb"), "r.yaml:10: not YAML: while parsing a block mapping, expected <block end>, …"),
    (changed("  lr", "\tlr"), "r.yaml:9: not YAML: while scanning for the next token, found character '\\t' that …"),
    ("data: &d\n  dataset: *d\n", "r.yaml:1: nested too deep; a recipe has two levels…"),
    (changed("0.1", "!!float x"), "r.yaml:9: not YAML: the value does not fit its tag: …"),
    (changed("digits", "!!python/object:os.system x"), "r.yaml:2: not YAML: could not determine a constructor …"),
]

PATHS = [
    ("cub200_resnet81.yaml", "cub200_resnet81.yaml: no such recipe; did you mean recipes/cub200_resnet18.yaml?"),
    ("recipes/cub200_resnet81", "recipes/cub200_resnet81: no such recipe; did you mean recipes/cub200_resnet18.…"),
    ("other/cub200_resnet18.yaml", "other/cub200_resnet18.yaml: no such recipe; did you mean recipes/cub200_…"),
    ("nowhere.yaml", "nowhere.yaml: no such recipe; shipped recipes: …cub200_resnet18, …"),
    ("r.yaml/r.yaml", "r.yaml/r.yaml: no such recipe; …"),
    ("long" * 200, "long…long: no such recipe; …"),
    ("recipes", "recipes: a folder, not a recipe; name a YAML file in it"),
    ("", ".: a folder, not a recipe; name a YAML file in it"),
]

SEVERAL = changed("dataset:", "datset:").replace("num_epochs: 2", "num_epochs: two")
SEVERAL_LINES = [
    "r.yaml:1: data.dataset: missing; it has no default",
    "r.yaml:2: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
    "command line: optimizer.lr: read -1; allowed: greater than 0",
    "r.yaml:11: scheduler.num_epochs: read 'two'; allowed: a valid integer",
    "command line: run.seeed: unknown key, read 1; allowed: output_dir, seed, …; did you mean seed?",
]


def assert_lines(printed: Sequence[str], expected: Sequence[str]) -> None:
    assert len(printed) == len(expected), "\n".join(printed)
    for line, pattern in zip(printed, expected, strict=True):
        assert re.fullmatch(".*".join(map(re.escape, f"error: {pattern}".split("…"))), line), line


def error_lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """What `python -m cskd_hf.recipe` prints before it exits with status 2."""
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(argv))
    assert exit_.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


@pytest.mark.parametrize(("override", "line"), OVERRIDES)
def test_a_wrong_override_is_one_line(override, line, folder, capsys):
    write(folder)
    assert_lines(error_lines(capsys, "r.yaml", override), [line])


@pytest.mark.parametrize(("content", "line"), FILES, ids=[line[:40] for _, line in FILES])
def test_a_wrong_recipe_is_one_line(content, line, folder, capsys):
    write(folder, content)
    assert_lines(error_lines(capsys, "r.yaml"), [line])


@pytest.mark.parametrize(("path", "line"), PATHS)
def test_a_wrong_path_is_one_line_with_a_suggestion(path, line, folder, capsys):
    write(folder)
    (folder / "recipes").mkdir()
    assert_lines(error_lines(capsys, path), [line])


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("data: digits", "data.dataset=cub200: data is 'digits', which has no keys"),
        ("data:", "data.dataset=cub200: data is null, which has no keys"),
    ],
)
def test_an_override_needs_a_section_with_keys(section, line, folder, capsys):
    write(folder, changed("data:\n  dataset: digits", section))
    assert_lines(error_lines(capsys, "r.yaml", "data.dataset=cub200"), [line])


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


def test_only_rank_0_prints_mistakes(folder, capsys, monkeypatch):
    write(folder, "")
    monkeypatch.setenv("RANK", "1")
    assert error_lines(capsys, "r.yaml") == []
    monkeypatch.setenv("RANK", "0")
    assert len(error_lines(capsys, "r.yaml")) == 1


def test_a_data_section_alone_has_the_same_messages():
    with pytest.raises(UserError) as caught:
        parse_data({"datset": "digits", "workers": True}, source="mix")
    assert_lines(
        [f"error: {line}" for line in str(caught.value).splitlines()],
        [
            "mix: data.dataset: missing; it has no default",
            "mix: data.workers: read true; allowed: a valid integer, or auto",
            "mix: data.datset: unknown key, read 'digits'; allowed: dataset, …; did you mean dataset?",
        ],
    )


@pytest.mark.parametrize("name", ["cross_entropy", "cskd", "mutual_cskd"])
def test_a_modern_recipe_is_a_few_keys_of_the_method(name):
    keys = ["smoothing=0.1", "mixup_alpha=0.2", "cutmix_alpha=1.0"]
    method = load_recipe("digits_resnet10", [f"method={{name: {name}}}", *(f"method.{key}" for key in keys)]).method
    assert (method.name, method.smoothing, method.mixup_alpha, method.cutmix_alpha) == (name, 0.1, 0.2, 1.0)
