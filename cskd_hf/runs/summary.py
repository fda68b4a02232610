"""Read the summary and the recipe of a run folder, and compare recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cskd_hf.errors import UserError
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe, identity, parse_recipe, recipe_hash


def _differences(held: Path, recipe: Recipe) -> list[str]:
    try:
        before = identity(parse_recipe(yaml.safe_load(held.read_text(encoding="utf-8")), source=str(held)))
    except (UserError, yaml.YAMLError) as error:
        return [f"{held} cannot be read by this version: {error}"]
    now = identity(recipe)
    lines = []
    for section in now:
        for key in sorted(before[section].keys() | now[section].keys()):
            old, new = before[section].get(key), now[section].get(key)
            if old != new:
                lines.append(f"{section}.{key}: {json.dumps(old)} in the folder, {json.dumps(new)} now")
    return lines


class _Read(BaseModel):
    """What is read of a summary; the rest is for others."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Numbers(_Read):
    """The metrics that the paper's tables hold."""

    top1_error: float
    top5_error: float
    ece: float
    recall_at_1: float | None


class Metrics(_Read):
    last: Numbers
    metrics_scaled: Numbers | None


class Throughput(_Read):
    images_per_second: float
    num_processes: int


class Summary(_Read):
    """summary.json of a finished run; see `runs/folder.py`."""

    recipe_hash: str
    metrics: Metrics
    throughput: Throughput

    def metric(self, name: str) -> float | None:
        """A metric of the last epoch; 'ece_scaled' is 'ece' with the fitted temperature."""
        if name.endswith("_scaled"):
            scaled = self.metrics.metrics_scaled
            return None if scaled is None else scaled.model_dump()[name.removesuffix("_scaled")]
        return self.metrics.last.model_dump()[name]


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        UserError: this version cannot read it.
    """
    path = folder / "recipe.yaml"
    return parse_recipe(yaml_io.read(path)[0], source=str(path))


def read_summary(folder: Path, recipe: Recipe) -> Summary:
    """The summary of a finished run, which must be of `recipe`.

    Raises:
        UserError: it is cut, or of another version, or not of this recipe.
    """
    path = folder / "summary.json"
    try:
        summary = Summary.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}{': ' if place else ''}{first['msg']}; cut, or another version's") from None
    own = recipe_hash(recipe)
    if summary.recipe_hash != own:
        raise UserError(
            f"{path}: recipe_hash is {summary.recipe_hash}, but recipe.yaml beside it has {own}: one of the two was "
            "changed, or written by another version"
        )
    return summary


def differences(held: Recipe, expected: Recipe) -> list[str]:
    """'section.key: … in the folder, … expected' for each setting that makes it another experiment.

    What only training knows, the number of classes and the launcher's precision, is the folder's where none is
    expected. A teacher is the same run wherever the folder of runs has moved.
    """
    before, now = identity(held), identity(expected)
    lines = []
    for section in now:
        for key in sorted(before[section].keys() | now[section].keys()):
            # A method's sections have other keys than another's.
            old, new = (_shown(keys, key) for keys in (before[section], now[section]))
            if new == "null" and (section, key) in (("model", "num_classes"), ("run", "mixed_precision")):
                continue
            if (section, key) == ("method", "teacher") and _base_name(before, key) == _base_name(now, key):
                continue
            if old != new:
                lines.append(f"{section}.{key}: {old} in the folder, {new} expected")
    return lines


def _shown(keys: Mapping[str, Any], key: str) -> str:
    return json.dumps(keys[key], ensure_ascii=False) if key in keys else "absent"


def _base_name(settings: Mapping[str, Mapping[str, Any]], key: str) -> str | None:
    return Path(settings["method"][key]).name if key in settings["method"] else None
