"""The runs behind the paper's tables: the recipe, the overrides and the folder of every cell and seed.

A cell's run is the shipped recipe of its image set and network with the row's method.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import EVIDENCE_COLUMNS, Block
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe, load_recipe


class Row(NamedTuple):
    """A row's method section.

    Attributes:
        fixed: settings that are the same in every recipe.
        from_cskd: field → the field of the recipe's own CS-KD section that gives its value.
        taught: `teacher` is the run of the same seed on the same images of a network trained with CS-KD.
    """

    fixed: Mapping[str, Any]
    from_cskd: Mapping[str, str] = {}
    taught: bool = False


_CLASS_WISE = {"temperature": "temperature", "distill_loss_weight": "distill_loss_weight"}
# Every other row is `{name: ROW}` with the method's defaults, and `cskd` the recipe's own section.
ROWS = {
    "label_smoothing": Row({"name": "cross_entropy", "smoothing": 0.1}),
    "cskd_e": Row({"name": "cskd_e"}, _CLASS_WISE),
    "mutual_cskd": Row({"name": "mutual_cskd"}, _CLASS_WISE),
    "mixup+cskd": Row({"name": "mixup_cskd"}, _CLASS_WISE),
    "kd": Row({"name": "distillation"}, taught=True),
    "kd+cskd": Row(
        {"name": "distillation_cskd"},
        {"class_wise_temperature": "temperature", "class_wise_loss_weight": "distill_loss_weight"},
        taught=True,
    ),
}


TEACHER = "densenet121"  # the paper's, trained with CS-KD


class RunKey(NamedTuple):
    dataset: str
    model: str
    method: str
    seed: int


@dataclass(frozen=True, eq=False)
class Run:
    """One training.

    Attributes:
        recipe: the shipped recipe's name.
        overrides: what `cskd_hf.train` is told beside it.
        folder: where it lies, or will.
        expected: the resolved recipe; null where training alone knows.
        shipped_batch: supervised images an update of the recipe as shipped, on its one process.
        teacher: what must be finished before this starts.
    """

    key: RunKey
    recipe: str
    overrides: tuple[str, ...]
    folder: Path
    expected: Recipe
    shipped_batch: int
    teacher: RunKey | None


class Setup(NamedTuple):
    """What all runs have in common.

    Attributes:
        root: the folder of run folders.
        data: dataset → the folder its images lie in, instead of the catalog's place.
        overrides: `section.key=value`.
    """

    root: Path
    data: Mapping[str, str]
    overrides: tuple[str, ...] = ()


def runs_of(blocks: Iterable[Block], seeds: Sequence[int] | None, setup: Setup) -> dict[RunKey, Run]:
    """Every run that some grids need, once, teachers first.

    Args:
        seeds: None: as many as the paper, three, and for ImageNet one.

    Raises:
        UserError: no such recipe, or the overrides are wrong: the recipe's own lines.
    """
    asked = [
        RunKey(dataset, model, method, seed)
        for block in blocks
        for dataset, model in block.columns
        for method in block.methods
        for seed in (((0,) if dataset == "imagenet" else (0, 1, 2)) if seeds is None else seeds)
    ]
    teachers = [teacher for key in asked if (teacher := teacher_of(key)) is not None]
    keys = list(dict.fromkeys([*teachers, *asked]))
    shipped: dict[str, Recipe] = {}
    as_run: dict[RunKey, Recipe] = {}  # of the first seed: reading YAML is slow
    for key in keys:
        name = f"{key.dataset}_{key.model}"
        if name not in shipped:
            shipped[name] = _shipped(name)
        if key._replace(seed=0) not in as_run:
            as_run[key._replace(seed=0)] = load_recipe(f"recipes/{name}.yaml", _overrides(key, shipped[name], setup))

    from cskd_hf.recipe.resolve import resolve  # late: it imports `datasets`, and mistakes shall show at once

    runs = {}
    for key in keys:
        name, folder, teacher = f"{key.dataset}_{key.model}", run_folder(setup.root, key), teacher_of(key)
        recipe = as_run[key._replace(seed=0)].replace(run={"seed": key.seed, "output_dir": folder.as_posix()})
        if teacher is not None:
            recipe = recipe.replace(method={"teacher": run_folder(setup.root, teacher).as_posix()})
        batch = shipped[name].data.batch_size * shipped[name].run.gradient_accumulation_steps
        own = _overrides(key, shipped[name], setup)
        runs[key] = Run(key, name, own, folder, resolve(recipe), batch, teacher)
    return runs


def run_folder(root: Path, key: RunKey) -> Path:
    """`root/cub200_resnet18-cskd-seed0`: for CS-KD and cross-entropy the folder that training itself chooses."""
    return root / f"{key.dataset}_{key.model}-{key.method.replace('+', '_')}-seed{key.seed}"


def teacher_of(key: RunKey) -> RunKey | None:
    if key.method in ROWS and ROWS[key.method].taught:
        # The paper's teacher has no recipe on the small sets: there a network's own CS-KD run teaches it.
        own = (key.dataset, key.model) in EVIDENCE_COLUMNS
        return key._replace(model=key.model if own else TEACHER, method="cskd")
    return None


def _shipped(name: str) -> Recipe:
    recipe = load_recipe(f"recipes/{name}.yaml")
    if recipe.method.name != "cskd":
        raise UserError(f"recipes/{name}.yaml: method.name: read {recipe.method.name!r}; the tables start from cskd")
    return recipe


def _overrides(key: RunKey, shipped: Recipe, setup: Setup) -> tuple[str, ...]:
    lines = []
    if key.method != "cskd":
        row = ROWS[key.method] if key.method in ROWS else Row({"name": key.method})
        cskd, teacher = shipped.to_dict()["method"], teacher_of(key)
        section = dict(row.fixed) | {field: cskd[source] for field, source in row.from_cskd.items()}
        if teacher is not None:
            section["teacher"] = run_folder(setup.root, teacher).as_posix()
        lines.append(f"method={{{', '.join(f'{field}: {_yaml(value)}' for field, value in section.items())}}}")
    if key.dataset in setup.data:
        lines.append(f"data.dataset={_yaml(setup.data[key.dataset])}")
    folder = run_folder(setup.root, key).as_posix()
    return (*lines, *setup.overrides, f"run.seed={key.seed}", f"run.output_dir={_yaml(folder)}")


def _yaml(value: Any) -> str:
    """As people write it where that reads back as the same value, else quoted."""
    text, read = str(value), dict[str, Any]()
    try:
        yaml_io.apply_override(read, f"x={{y: {text}}}")
    except UserError:
        return json.dumps(value, ensure_ascii=False)
    return text if read == {"x": {"y": value}} else json.dumps(value, ensure_ascii=False)
