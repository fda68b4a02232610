"""The recipe: YAML in, frozen and validated settings out.

A section is one function's keyword arguments under its own names: `model` is `timm.create_model`, `optimizer` is
`timm.optim.create_optimizer_v2`, `scheduler` is `timm.scheduler.create_scheduler_v2`, `transform` is
`timm.data.create_transform`; `data` and `run` take timm's, else Accelerate's and transformers' names; `method` is one
of `cskd_hf.methods.METHODS`, chosen by its `name`. Two levels, never three.

    python -m cskd_hf.recipe --schema > recipe.schema.json     # editors complete recipes with it
    python -m cskd_hf.recipe RECIPE [section.key=value ...]    # print the recipe as it would run
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field, ValidationError

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS, Method
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.explain import explain
from cskd_hf.recipe.sections import (
    DataSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    SchedulerSection,
    Section,
    TransformSection,
)

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007


class Recipe(Section):
    """A whole experiment.

    Example:
        >>> from cskd_hf import load_recipe
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml").replace(run={"seed": 1})
        >>> recipe.run.seed, recipe.to_dict()["method"]["temperature"]
        (1, 4.0)
    """

    data: DataSection
    transform: TransformSection = TransformSection()
    model: ModelSection
    method: AnyMethod
    optimizer: OptimizerSection
    scheduler: SchedulerSection
    run: RunSection = RunSection()

    def replace(self, **sections: Mapping[str, Any]) -> Recipe:
        """A copy with some settings of some sections changed: `recipe.replace(run={"seed": 1})`."""
        changed = {name: getattr(self, name).model_copy(update=dict(keys)) for name, keys in sections.items()}
        return self.model_copy(update=changed)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Plain lists, numbers and strings: what YAML and JSON hold."""
        return self.model_dump(mode="json")


# Settings that change neither the weights nor the numbers of a run.
_NOT_IN_HASH = {
    "data": ("workers",),
    "run": (
        *("output_dir", "resume", "report_to", "logging_steps", "checkpoint_steps", "checkpoints_total_limit"),
        *("num_processes", "ddp_timeout", "max_hours", "hub_model_id", "hub_private_repo"),
    ),
}


def identity(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The settings that decide what a run computes: with the number of processes, the network that it trains."""
    settings = recipe.to_dict()
    for section, keys in _NOT_IN_HASH.items():
        for key in keys:
            del settings[section][key]
    return settings


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits of the SHA-256 of what of `identity` is not a default.

    So a setting that is added one day, with a default that changes nothing, leaves the hashes of old runs alone.
    """
    everything, chosen = identity(recipe), recipe.model_dump(mode="json", exclude_defaults=True)
    told = {
        section: {key: value for key, value in keys.items() if key in chosen.get(section, {})}
        for section, keys in everything.items()
    }
    told["method"]["name"] = recipe.method.name
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides, validate.

    Args:
        path: a YAML file; one missing in the working folder is looked for among the recipes shipped with the package.
        overrides: values are YAML: `optimizer.lr=0.05`, `'method={name: cross_entropy}'`.

    Raises:
        UserError: one line for each mistake, with the key, what was read and what is allowed.

    Example:
        >>> from cskd_hf import load_recipe
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml", ["optimizer.lr=0.05", "method.temperature=2.0"])
        >>> recipe.optimizer.lr, recipe.method.temperature
        (0.05, 2.0)
    """
    file = yaml_io.find(path)
    settings, lines = yaml_io.read(file)
    for override in overrides:
        yaml_io.apply_override(settings, override)
    where = {".".join(key): f"{file}:{line}" for key, line in lines.items()}
    for override in overrides:
        name = override.partition("=")[0].strip()
        section, dot, _ = name.partition(".")
        if dot:
            where.setdefault(section, "command line")
        else:  # a whole section: the lines of the one it replaces are about nothing now
            where = {key: place for key, place in where.items() if not key.startswith(f"{section}.")}
        where[name] = "command line"
    recipe = parse_recipe(settings, source=str(file), where=where)
    if recipe.run.output_dir is None:
        name = f"{file.stem}-{recipe.method.name}-seed{recipe.run.seed}"
        recipe = recipe.replace(run={"output_dir": f"runs/{name}"})
    return recipe


def parse_recipe(settings: Mapping[str, Any], source: str = "recipe", where: Mapping[str, str] | None = None) -> Recipe:
    """Validate nested plain values; `where` maps 'section.key' to the place that set it, for the error lines."""
    try:
        # Through JSON, so that strictness accepts what YAML can say: a list for a tuple, but no string for a number.
        text = json.dumps(settings, default=str)
        return Recipe.model_validate_json(text)
    except ValidationError as error:
        # What was validated, whose keys are words: YAML's `3: x` has another kind of key.
        raise UserError("\n".join(explain(error, json.loads(text), Recipe, source, where or {}))) from None


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe: the file reruns the experiment."""
    yaml_io.write(recipe.to_dict(), path)
