"""The runs behind the paper's tables: recipe, overrides and folder for every cell and seed.

A cell's run is the shipped recipe of its dataset and network with the row's method.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import EVIDENCE_COLUMNS, PAPER_NAMES, Block
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve

_RECIPE_NAMES = {paper: name for name, paper in PAPER_NAMES.items()} | {"label_smoothing": "cross_entropy"}
# The recipe's CS-KD coefficients, under the names of the methods that share them.
_CLASS_WISE = {"temperature": "temperature", "distill_loss_weight": "distill_loss_weight"}
_COEFFICIENTS: dict[str, dict[str, str]] = {
    "cskd_e": _CLASS_WISE,
    "mutual_cskd": _CLASS_WISE,
    "ips": _CLASS_WISE,
    "mixup+cskd": _CLASS_WISE,
    "kd+cskd": {"class_wise_temperature": "temperature", "class_wise_loss_weight": "distill_loss_weight"},
}
_DISTILLED = ("kd", "kd+cskd")
_TEACHER = "densenet121"  # the paper's, trained with CS-KD on the same dataset with the same seed


class RunKey(NamedTuple):
    dataset: str
    model: str
    method: str
    seed: int


@dataclass(frozen=True, eq=False)
class Run:
    """One training run.

    Attributes:
        recipe: name of the shipped recipe.
        overrides: command-line overrides for `cskd_hf.train`.
        folder: run folder; it may not exist yet.
        expected: the resolved recipe; null where only training knows the value.
        shipped_batch: supervised images per update of the shipped recipe on one process.
        teacher: the run that must finish first.
    """

    key: RunKey
    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    expected: Recipe
    shipped_batch: int
    teacher: RunKey | None


class Setup(NamedTuple):
    """Settings shared by all runs.

    Attributes:
        root: parent of the run folders.
        data: dataset → image folder, instead of the catalog's source.
        overrides: `section.key=value`.
    """

    root: Path
    data: Mapping[str, str]
    overrides: tuple[str, ...] = ()


def runs_of(blocks: Iterable[Block], seeds: Sequence[int] | None, setup: Setup) -> dict[RunKey, Run]:
    """Every run that some grids need, once, teachers first.

    Args:
        seeds: None for the paper's number of runs: three, and one on ImageNet.

    Raises:
        UserError: a recipe does not exist, or an override is wrong.
    """
    keys = [
        RunKey(dataset, model, method, seed)
        for block in blocks
        for dataset, model in block.columns
        for method in block.methods
        for seed in (((0,) if dataset == "imagenet" else (0, 1, 2)) if seeds is None else seeds)
    ]
    teachers = [teacher for key in keys if (teacher := teacher_of(key)) is not None]
    shipped: dict[str, Recipe] = {}
    resolved: dict[tuple[str, str, str], Recipe] = {}  # with any seed: parsing YAML is slow
    runs = {}
    for key in dict.fromkeys([*teachers, *keys]):
        name = f"{key.dataset}_{key.model}"
        if name not in shipped:
            shipped[name] = _shipped(name)
        overrides = _overrides(key, shipped[name], setup)
        if key[:3] not in resolved:
            resolved[key[:3]] = resolve(load_recipe(f"recipes/{name}.yaml", overrides))
        folder, teacher = run_folder(setup.root, key), teacher_of(key)
        recipe = resolved[key[:3]].replace(run={"seed": key.seed, "output_dir": folder.as_posix()})
        if teacher is not None:
            recipe = recipe.replace(method={"teacher": run_folder(setup.root, teacher).as_posix()})
        batch = shipped[name].data.batch_size * shipped[name].run.gradient_accumulation_steps
        runs[key] = Run(key, name, overrides, folder, recipe, batch, teacher)
    return runs


def run_folder(root: Path, key: RunKey) -> Path:
    """`root/cub200_resnet18-cskd-seed0`: training's own default for CS-KD and cross-entropy."""
    return root / f"{key.dataset}_{key.model}-{key.method.replace('+', '_')}-seed{key.seed}"


def teacher_of(key: RunKey) -> RunKey | None:
    if key.method not in _DISTILLED:
        return None
    # The small sets have no recipe for the paper's teacher; there the network's own CS-KD run teaches.
    model = key.model if (key.dataset, key.model) in EVIDENCE_COLUMNS else _TEACHER
    return key._replace(model=model, method="cskd")


def _shipped(name: str) -> Recipe:
    recipe = load_recipe(f"recipes/{name}.yaml")
    if recipe.method.name != "cskd":
        raise UserError(f"recipes/{name}.yaml: method.name: read {recipe.method.name!r}; the tables need cskd")
    return recipe


def _overrides(key: RunKey, shipped: Recipe, setup: Setup) -> tuple[str, ...]:
    overrides = []
    if key.method != "cskd":
        cskd, teacher = shipped.to_dict()["method"], teacher_of(key)
        section: dict[str, Any] = {"name": _RECIPE_NAMES.get(key.method, key.method)}
        if key.method == "label_smoothing":
            section["smoothing"] = 0.1
        section |= {field: cskd[source] for field, source in _COEFFICIENTS.get(key.method, {}).items()}
        if teacher is not None:
            section["teacher"] = run_folder(setup.root, teacher).as_posix()
        overrides.append(f"method={{{', '.join(f'{field}: {_yaml(value)}' for field, value in section.items())}}}")
    if key.dataset in setup.data:
        overrides.append(f"data.dataset={_yaml(setup.data[key.dataset])}")
    folder = run_folder(setup.root, key).as_posix()
    return (*overrides, *setup.overrides, f"run.seed={key.seed}", f"run.output_dir={_yaml(folder)}")


def _yaml(value: Any) -> str:
    """The value unquoted where YAML reads it back unchanged, else as JSON."""
    text, parsed = str(value), dict[str, Any]()
    try:
        yaml_io.apply_override(parsed, f"x={{y: {text}}}")
    except UserError:
        return json.dumps(value, ensure_ascii=False)
    return text if parsed == {"x": {"y": value}} else json.dumps(value, ensure_ascii=False)
