"""What became of the runs behind a table: finished, cut short, never started, of another recipe, or unreadable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from cskd_hf import yaml_files
from cskd_hf.errors import UserError
from cskd_hf.experiments import Run
from cskd_hf.recipe import Recipe, identity, parse_recipe, recipe_hash
from cskd_hf.results import run_lock


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
    """summary.json of a finished run; see `results/run_folder.py`."""

    recipe_hash: str
    metrics: Metrics
    throughput: Throughput

    def metric(self, name: str) -> float | None:
        """A metric of the last epoch; 'ece_scaled' is 'ece' with the fitted temperature."""
        if name.endswith("_scaled"):
            scaled = self.metrics.metrics_scaled
            return None if scaled is None else scaled.model_dump()[name.removesuffix("_scaled")]
        return self.metrics.last.model_dump()[name]


Status = Literal["finished", "unfinished", "not started", "another recipe", "unreadable"]


@dataclass(frozen=True)
class Found:
    """A run folder as it stands.

    Attributes:
        epochs: trained so far.
        recipe: the folder's own, where it can be read.
        summary: of a finished run.
        problem: of another recipe, the keys that differ; of an unreadable folder, why.
    """

    status: Status
    epochs: int = 0
    recipe: Recipe | None = None
    summary: Summary | None = None
    problem: str = ""

    @property
    def trainable(self) -> bool:
        """Whether training would start or go on here; what else is not finished, it refuses."""
        return self.status in ("not started", "unfinished")

    def describe(self, run: Run) -> str:
        if self.status == "unfinished":
            return f"unfinished ({self.epochs} of {run.expected.scheduler.total_epochs} epochs)"
        return f"{self.status} ({self.problem})" if self.problem else self.status


def find_run(run: Run) -> Found:
    """Look at the folder of a run; nothing in it is changed."""
    folder = run.folder
    if not folder.exists():
        return Found("not started")
    if not (folder / "recipe.yaml").is_file():
        # A run that starts locks its folder first.
        if folder.is_dir() and all(file.name == run_lock.NAME for file in folder.iterdir()):
            return Found("not started")
        return Found("unreadable", problem="no recipe.yaml, so no run; training refuses such a folder")
    try:
        recipe = read_recipe(folder)
        summary = read_summary(folder, recipe) if (folder / "summary.json").is_file() else None
    except UserError as error:
        return Found("unreadable", problem=" | ".join(str(error).splitlines()))
    different = differences(recipe, run.expected)
    if different:
        return Found("another recipe", recipe=recipe, problem="; ".join(different))
    epochs = recipe.scheduler.total_epochs if summary else _epochs_trained(folder)
    return Found("finished" if summary else "unfinished", epochs, recipe, summary)


def read_recipe(folder: Path) -> Recipe:
    """The resolved recipe of a run folder.

    Raises:
        UserError: this version cannot read it.
    """
    path = folder / "recipe.yaml"
    return parse_recipe(yaml_files.read(path)[0], source=str(path))


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


def _epochs_trained(folder: Path) -> int:
    """Whole epochs that metrics.jsonl tells of; a kill may have cut its last line."""
    try:
        return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    except FileNotFoundError:
        return 0
