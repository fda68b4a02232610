"""The runs behind the paper's tables: recipe, overrides and folder for every cell and seed.

A cell's run is the shipped recipe of its dataset and network with the row's method.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from cskd_hf.errors import UserError
from cskd_hf.paper import evidence
from cskd_hf.paper.blocks import Block, RunKey
from cskd_hf.paper.rows import row_of
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.resolve import resolve
from cskd_hf.recipe.sections import SchedulerSection, fill
from cskd_hf.recipe.suggest import flow

_DISTILLED = ("kd", "kd+cskd")
_TEACHER = "densenet121"  # the paper's, trained with CS-KD on the same dataset with the same seed


class Size(NamedTuple):
    """Classes and images of a run's data; `holdout` is 0 without a hold-out set."""

    classes: int
    train: int
    holdout: int
    test: int


@dataclass(frozen=True, eq=False)
class Run:
    """One training run.

    Attributes:
        recipe: path of the shipped recipe.
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

    @functools.cached_property
    def size(self) -> Size:
        """By the catalog's numbers of its splits; otherwise by reading the labels."""
        entry, data = CATALOG.get(self.key.dataset), self.expected.data
        official = {} if entry is None else entry.num_images
        if entry is not None:  # in a folder of another name, the splits are called as in the catalog
            data = fill(data, {"train_split": entry.train_split, "test_split": entry.test_split})
        named = {split for split in (data.train_split, data.test_split, data.holdout) if isinstance(split, str)}
        if entry is None or not official.keys() >= named:
            from cskd_hf.data.splits import load_images

            images = load_images(data)
            return Size(images.num_classes, len(images.train), len(images.holdout or ()), len(images.test))

        def count(split: str | float | None, of: int) -> int:
            return official[split] if isinstance(split, str) else round(of * (split or 0))

        train = count(data.train_split, 0)
        test = count(data.test_split, train)
        train -= test if isinstance(data.test_split, float) else 0
        holdout = count(data.holdout, train)
        train -= holdout if isinstance(data.holdout, float) else 0
        return Size(entry.num_classes, train, holdout, test)

    def compute(self, train_images: int) -> float:
        """Of the whole training, in forward and backward passes of one image; a forward alone counts 1/3."""
        return train_images * self.expected.scheduler.total_epochs * self.expected.method.cost


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


class _Recipes:
    """The recipes behind one setup's runs, each read once: parsing YAML is slow."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self._load = functools.cache(load_recipe)

    def shipped(self, key: RunKey) -> Recipe:
        recipe = self._load(recipe_file(key))
        if recipe.method.name != "cskd":
            raise UserError(f"{recipe_file(key)}: method.name: read {recipe.method.name!r}; the tables need cskd")
        return recipe

    def schedule(self, key: RunKey) -> SchedulerSection:
        """The recipe's, with the setup's overrides."""
        return self._load(recipe_file(key), self.setup.overrides).scheduler

    def resolved(self, key: RunKey) -> Recipe:
        """The run's recipe."""
        folder, teacher = run_folder(self.setup.root, key), teacher_of(key)
        recipe = resolve(self._load(recipe_file(key), self.overrides(key._replace(seed=0))))
        recipe = recipe.replace(run={"seed": key.seed, "output_dir": folder.as_posix()})
        if teacher is not None:
            recipe = recipe.replace(method={"teacher": run_folder(self.setup.root, teacher).as_posix()})
        return recipe

    def overrides(self, key: RunKey) -> tuple[str, ...]:
        """The command-line overrides of the shipped recipe."""
        overrides, row, setup = list[str](), row_of(key.method), self.setup
        if row.method != "cskd":
            section, teacher = row.section(self.shipped(key).to_dict()["method"]), teacher_of(key)
            if teacher is not None:
                section["teacher"] = run_folder(setup.root, teacher).as_posix()
            overrides.append(f"method={flow(section)}")
        else:
            overrides += [f"method.{field}={flow(value)}" for field, value in row.settings.items()]
        if key.dataset in setup.data:
            overrides.append(f"data.dataset={flow(setup.data[key.dataset])}")
        overrides += [*row.overrides, *setup.overrides]
        if key.epochs is not None:
            overrides += _stretched(self.schedule(key), key.epochs)
        return (*overrides, f"run.seed={key.seed}", f"run.output_dir={flow(run_folder(setup.root, key).as_posix())}")

    def affordable(self, block: Block) -> dict[tuple[str, str, str], int]:
        """The epochs that a grid's budget pays for, at `Method.cost` a sample, where they are not the recipe's."""
        assert block.budget is not None
        epochs = {}
        for method, (dataset, model) in itertools.product(block.methods, block.columns):
            recipe = self.resolved(RunKey(dataset, model, method, seed=0))
            total = recipe.scheduler.total_epochs
            paid = max(1, round(block.budget * total / recipe.method.cost))
            if paid != total:
                epochs[method, dataset, model] = paid
        return epochs


def at_equal_compute(blocks: Iterable[Block], setup: Setup) -> list[Block]:
    """The grids, with the epochs of those that have a budget."""
    recipes = _Recipes(setup)
    return [block if block.budget is None else replace(block, epochs=recipes.affordable(block)) for block in blocks]


def runs_of(blocks: Iterable[Block], seeds: Sequence[int] | None, setup: Setup) -> dict[RunKey, Run]:
    """Every run that some grids need, once: the first seed of every cell, then the second; in a seed, teachers first.

    Args:
        blocks: from `at_equal_compute`.
        seeds: None for the paper's number of runs: three, and one on ImageNet.

    Raises:
        UserError: a recipe does not exist, or an override is wrong.
    """
    keys = [
        block.key(method, column, seed)
        for block in blocks
        for column in block.columns
        for method in block.methods
        for seed in (((0,) if column[0] == "imagenet" else (0, 1, 2)) if seeds is None else seeds)
    ]
    teachers = [teacher for key in keys if (teacher := teacher_of(key)) is not None]
    order = list(dict.fromkeys(key.seed for key in keys))
    recipes, runs = _Recipes(setup), {}
    for key in sorted(dict.fromkeys([*teachers, *keys]), key=lambda key: order.index(key.seed)):
        shipped = recipes.shipped(key)
        batch = shipped.data.batch_size * shipped.run.gradient_accumulation_steps
        runs[key] = Run(
            key,
            recipe_file(key),
            recipes.overrides(key),
            run_folder(setup.root, key),
            recipes.resolved(key),
            batch,
            teacher_of(key),
        )
    return runs


def recipe_name(key: RunKey) -> str:
    return f"{key.dataset}_{key.model}"


def recipe_file(key: RunKey) -> str:
    return f"recipes/{recipe_name(key)}.yaml"


def run_folder(root: Path, key: RunKey) -> Path:
    """`root/cub200_resnet18-cskd-seed0`: training's own default for CS-KD and cross-entropy; or `…-45epochs-seed0`."""
    epochs = "" if key.epochs is None else f"-{key.epochs}epochs"
    return root / f"{recipe_name(key)}-{key.method.replace('+', '_')}{epochs}-seed{key.seed}"


def teacher_of(key: RunKey) -> RunKey | None:
    if key.method not in _DISTILLED:
        return None
    # The small sets have no recipe for the paper's teacher; there the network's own CS-KD run teaches.
    model = key.model if (key.dataset, key.model) in evidence.COLUMNS else _TEACHER
    return RunKey(key.dataset, model, "cskd", key.seed)


def _stretched(schedule: SchedulerSection, epochs: int) -> list[str]:
    """Overrides that train for `epochs` in all, with everything else of the schedule in proportion."""
    factor = epochs / schedule.total_epochs
    changed: dict[str, Any] = {
        name: round(factor * getattr(schedule, name)) for name in ("warmup_epochs", "cooldown_epochs")
    }
    prefix = changed["warmup_epochs"] if schedule.warmup_prefix else 0
    changed["num_epochs"] = epochs - changed["cooldown_epochs"] - prefix
    if schedule.sched == "multistep":
        # timm acts one epoch early: milestone m lowers the rate after m − 1 epochs.
        changed["decay_milestones"] = [round(factor * (drop - 1)) + 1 for drop in schedule.decay_milestones]
    if schedule.decay_epochs is not None:
        changed["decay_epochs"] = factor * schedule.decay_epochs
    return [f"scheduler.{name}={value}" for name, value in changed.items() if value != getattr(schedule, name)]
