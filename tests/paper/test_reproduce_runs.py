"""The runs behind the paper's tables: cells, recipes, folders, teachers and seeds."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml
from command_runs import ROOT
from written_runs import CUB, one_run, some_runs

from cskd_hf.methods import METHODS
from cskd_hf.paper.blocks import PAPER_RESULTS, RunKey
from cskd_hf.paper.experiments import Setup, runs_of
from cskd_hf.paper.selection import select
from cskd_hf.recipe.recipe import load_recipe, recipe_hash
from cskd_hf.recipe.resolve import resolve
from cskd_hf.reproduce import main


def _leaves(value):
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in _leaves(each)]
    return [tuple(value) if isinstance(value, list) else (value, None)]


def test_every_published_value_is_a_cell():
    content = yaml.safe_load(PAPER_RESULTS.read_text(encoding="utf-8"))
    for table, parts in content.items():
        published = _leaves({name: part for name, part in parts.items() if name not in ("caption", "metric")})
        blocks = select([table])
        cells = [(value.mean, value.std) for block in blocks for value in block.paper.values()]
        assert Counter(cells) == Counter(published)
        assert sum(len(block.methods) * len(block.columns) for block in blocks) == len(published)


TEACHER = "R/cub200_densenet121-cskd-seed1"


@pytest.mark.parametrize(
    ("method", "section"),
    [
        ("cross_entropy", {"name": "cross_entropy", "smoothing": 0.0}),
        ("label_smoothing", {"name": "cross_entropy", "smoothing": 0.1}),
        ("cskd", {"name": "cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("cskd_e", {"name": "cskd_e", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("mixup+cskd", {"name": "mixup_cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("mutual_cskd", {"name": "mutual_cskd", "temperature": 1.0, "distill_loss_weight": 2.0}),
        ("kd", {"name": "distillation", "teacher": TEACHER, "temperature": 4.0, "distill_loss_weight": 0.9}),
        (
            "kd+cskd",
            {
                "name": "distillation_cskd",
                "teacher": TEACHER,
                "temperature": 4.0,
                "distill_loss_weight": 0.9,
                "class_wise_temperature": 1.0,
                "class_wise_loss_weight": 2.0,
            },
        ),
    ],
)
def test_a_row_trains_its_method_with_the_recipes_coefficients(tmp_path, monkeypatch, method, section):
    # Coefficients that differ from every method's defaults.
    text = (ROOT / "recipes" / "cub200_resnet10.yaml").read_text(encoding="utf-8")
    assert "temperature: 4.0" in text
    assert "distill_loss_weight: 3.0" in text
    text = text.replace("temperature: 4.0", "temperature: 1.0").replace("_weight: 3.0", "_weight: 2.0")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "cub200_resnet10.yaml").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runs = some_runs(Path("R"), "table4", datasets=["cub200"], methods=[method], seeds=[1])
    run = runs[RunKey("cub200", "resnet10", method, 1)]
    trained = run.expected.to_dict()["method"]
    assert {key: trained[key] for key in section} == section
    assert run.folder == Path(f"R/cub200_resnet10-{method.replace('+', '_')}-seed1")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_a_row(method):
    runs = some_runs(Path("R"), "table2", methods=[method], seeds=[0], **CUB)
    assert list(runs.values())[-1].expected.method.name == method


@pytest.mark.parametrize("method", ["cskd", "cross_entropy"])
def test_the_folder_is_trainings_default(method):
    recipe = load_recipe("recipes/cub200_resnet18.yaml", [] if method == "cskd" else [f"method={{name: {method}}}"])
    run = one_run(Path("runs"), method)
    assert recipe.run.output_dir == run.folder.as_posix()
    assert recipe_hash(resolve(recipe)) == recipe_hash(run.expected)


def test_the_overrides_give_the_expected_recipe():
    setup = Setup(Path("null"), {"cub200": "1e-4", "mit67": "a: b"}, ("optimizer.lr=0.05", "data.workers=2"))
    runs = runs_of(select(["table4"], ["cub200", "mit67", "cifar100"]), [0, 7], setup)
    for key, run in runs.items():
        recipe = resolve(load_recipe(run.recipe, run.overrides))
        assert recipe == run.expected
        assert (recipe.run.seed, recipe.optimizer.lr) == (key.seed, 0.05)
        assert recipe.run.output_dir == run.folder.as_posix()
        assert recipe.data.dataset == {"cub200": "1e-4", "mit67": "a: b", "cifar100": "cifar100"}[key.dataset]


def test_every_cell_gets_its_first_seed_before_any_its_second_and_teachers_come_first():
    runs = some_runs(Path("R"), "all", datasets=["cub200", "mit67"], seeds=[1, 0])
    half = len(runs) // 2
    assert [key.seed for key in runs] == [1] * half + [0] * half
    for seed, first in ((1, list(runs)[:2]), (0, list(runs)[half : half + 2])):
        assert first == [RunKey(dataset, "densenet121", "cskd", seed) for dataset in ("cub200", "mit67")]
    students = {key: run.teacher for key, run in runs.items() if run.teacher is not None}
    assert len(students) == 8
    assert all(teacher == key._replace(model="densenet121", method="cskd") for key, teacher in students.items())


def test_on_the_small_sets_the_networks_cskd_run_is_the_teacher(tmp_path, capsys):
    chosen = ["--datasets", "fashion_mnist_1k", "digits", "--methods", "kd", "--seeds", "4"]
    folder = ["--data", "fashion_mnist_1k=./fashion", "--runs", str(tmp_path)]
    assert main(["evidence", *chosen, *folder, "--commands"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    names = ["fashion_mnist_1k_test_resnet-{}-seed4", "digits_resnet10-{}-seed4"]
    folders = [f"{tmp_path}/{name.format(method)}" for method in ("cskd", "kd") for name in names]
    lines = lines[:4]  # without the students at equal compute
    assert [line[-1] for line in lines] == [f"run.output_dir={folder}" for folder in folders]
    for student, teacher in zip(lines[2:], folders[:2], strict=True):
        assert f"method={{name: distillation, teacher: {teacher}}}" in student
    assert ["data.dataset=./fashion" in line for line in lines] == [True, False, True, False]


def test_seeds_default_to_the_papers_number_of_runs():
    runs = runs_of(select(["table1", "table5"], methods=["cskd"]), None, Setup(Path("R"), {}))
    assert {key.seed for key in runs if key.dataset != "imagenet"} == {0, 1, 2}
    assert {key.seed for key in runs if key.dataset == "imagenet"} == {0}


def test_a_method_not_in_the_paper_is_a_row_without_published_values():
    (block,) = select(["table2"], ["cub200"], methods=["pskd", "cskd"])
    assert block.methods == ("cskd", "pskd")
    assert ("pskd", "cub200", "resnet18") not in block.paper
    # A row of one requested table is not added to the others.
    rows = {block.table: block.methods for block in select(["table2", "table3"], methods=["mixup", "cskd"])}
    assert rows == {"table2": ("cskd",), "table3": ("cskd", "mixup")}
