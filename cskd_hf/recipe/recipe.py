"""The recipe: YAML in, frozen and validated settings out; README.md in this folder explains the format."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, Union

from pydantic import Field, ValidationError

from cskd_hf.errors import UserError
from cskd_hf.methods import METHODS, Method
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.catalog import CATALOG, catalog_name, entry_of
from cskd_hf.recipe.explain import Checked, explain
from cskd_hf.recipe.overrides import apply_overrides
from cskd_hf.recipe.sections import (
    TRANSFORM_DEFAULTS,
    DataSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    SchedulerSection,
    Section,
    TransformSection,
)
from cskd_hf.recipe.suggest import flow, paste

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[Union[tuple(METHODS.values())], Field(discriminator="name")]  # noqa: UP007

Kind = TypeVar("Kind", bound=Section)


class Recipe(Section):
    """One experiment.

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
        """Section → key → value, in YAML's and JSON's types."""
        return self.model_dump(mode="json")


class _DataOnly(Section):
    data: DataSection


# Settings that change neither the weights nor the metrics of a run.
_NOT_IN_HASH = {
    "data": ("workers",),
    "run": (
        *("output_dir", "resume", "report_to", "logging_steps", "checkpoint_steps", "checkpoints_total_limit"),
        *("num_processes", "ddp_timeout", "max_hours", "hub_model_id", "hub_private_repo", "hub_license"),
    ),
}


def identity(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """The settings that, with the number of processes, determine a run's results."""
    settings = recipe.to_dict()
    for section, keys in _NOT_IN_HASH.items():
        for key in keys:
            del settings[section][key]
    if not recipe.run.model_ema:
        del settings["run"]["model_ema_warmup"]  # no effect
    if not recipe.run.uses_holdout:
        del settings["run"]["selection_metric"]  # no effect
    return settings


def recipe_hash(recipe: Recipe) -> str:
    """16 hexadecimal digits of the SHA-256 of those settings of `identity` that are not defaults.

    A setting added later, with a default that changes nothing, leaves the hashes of earlier runs as they are.
    """
    settings = recipe.model_dump(mode="json", exclude_defaults=True)
    changed = {(section, key) for section, keys in settings.items() for key in keys}
    # `resolve` writes these defaults where a recipe says null.
    changed -= {
        ("transform", key) for key, value in TRANSFORM_DEFAULTS.items() if getattr(recipe.transform, key) == value
    }
    hashed = {
        section: {key: value for key, value in keys.items() if (section, key) in changed}
        for section, keys in identity(recipe).items()
    }
    hashed["method"]["name"] = recipe.method.name
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, apply `section.key=value` overrides, validate.

    Args:
        path: a YAML file; one missing in the working folder is looked up among the recipes shipped with the package.
        overrides: values are YAML: `optimizer.lr=0.05`, `'method={name: cross_entropy}'`.

    Raises:
        UserError: one line for each mistake: place, key, value read, what is allowed.

    Example:
        >>> from cskd_hf import load_recipe
        >>> recipe = load_recipe("recipes/digits_resnet10.yaml", ["optimizer.lr=0.05", "method.temperature=2.0"])
        >>> recipe.optimizer.lr, recipe.method.temperature
        (0.05, 2.0)
    """
    file = yaml_io.find(path)
    settings, places = yaml_io.read(file)
    apply_overrides(settings, overrides, places)
    recipe = parse_recipe(settings, str(file), places)
    if recipe.run.output_dir is None:
        name = f"{_experiment_name(file.stem, recipe.data.dataset)}-{recipe.method.name}-seed{recipe.run.seed}"
        recipe = recipe.replace(run={"output_dir": f"runs/{name}"})
    return recipe


def _experiment_name(stem: str, dataset: str) -> str:
    """DATASET_RECIPE, as shipped recipes are called: `finetune` on ./birds and `birds_finetune` are both the latter."""
    name = catalog_name(dataset) or re.sub(r"[^\w.-]+", "_", Path(dataset).absolute().name)
    if stem == name or stem.startswith(f"{name}_"):
        return stem
    others = [other for other in CATALOG if stem.startswith(f"{other}_")]  # the recipe was written for another set
    return f"{name}_{stem.removeprefix(max(others, key=len) + '_') if others else stem}"


def parse_recipe(
    settings: Mapping[str, Any], source: str = "recipe", places: Mapping[str, str] | None = None
) -> Recipe:
    """Validate section → key → value; errors name the place of 'section.key', or else `source`."""
    recipe = _validate(Recipe, settings, source, places or {})
    _check_input(recipe, source, places or {})
    _check_holdout(recipe, source, places or {})
    return recipe


def _check_input(recipe: Recipe, source: str, places: Mapping[str, str]) -> None:
    """Compare the images that the network is built for with those that it gets."""
    channels, height, width = recipe.transform.input_size
    size = recipe.model.img_size
    for key, read, expected in (
        ("in_chans", recipe.model.in_chans, channels),
        ("img_size", (size, size) if isinstance(size, int) else size, (height, width)),
    ):
        if read is not None and read != expected:
            at = places.get(f"model.{key}", source)
            wanted = (read, height, width) if isinstance(read, int) else (channels, *read)
            raise UserError(
                f"{at}: model.{key}: read {flow(getattr(recipe.model, key))}, but transform.input_size is "
                f"{flow(recipe.transform.input_size)}; write {paste(at, 'transform.input_size', wanted)} or "
                f"{paste(at, f'model.{key}', expected)}"
            )


def _check_holdout(recipe: Recipe, source: str, places: Mapping[str, str]) -> None:
    """The test split never decides which weights a run ends with."""
    data, run = recipe.data, recipe.run
    holdout = getattr(entry_of(data.dataset), "holdout", None) if data.holdout is None else data.holdout
    if run.uses_holdout and not holdout:
        key, off = ("early_stopping_patience", None) if run.selection == "last" else ("selection", "last")
        at = places.get(f"run.{key}", source)
        raise UserError(
            f"{at}: run.{key}: read {flow(getattr(run, key))}, but there is no hold-out set; write "
            f"{paste(at, 'data.holdout', 0.1)} or {paste(at, f'run.{key}', off)}"
        )


def parse_data(settings: Any, source: str, places: Mapping[str, str] | None = None) -> DataSection:
    """Validate the keys of a data section, for code that reads images and trains nothing."""
    return _validate(_DataOnly, {"data": settings}, source, places or {}).data


def dump_recipe(recipe: Recipe, path: Path) -> None:
    """Write a file that reruns the experiment."""
    yaml_io.write(recipe.to_dict(), path)


def _validate(kind: type[Kind], settings: Mapping[str, Any], source: str, places: Mapping[str, str]) -> Kind:
    # Through JSON: strict validation then accepts a list for a tuple, but no string for a number.
    text = json.dumps(settings, default=str)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        sections = {name: field.annotation for name, field in kind.model_fields.items()}
        # Parsed again, because JSON turned YAML's number keys into strings.
        raise UserError(explain(error, Checked(json.loads(text), sections, METHODS), source, places)) from None
