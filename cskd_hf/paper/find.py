"""The state of the runs behind a table: finished, unfinished, not started, of another recipe, or unreadable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cskd_hf.errors import UserError
from cskd_hf.paper.blocks import RunKey
from cskd_hf.paper.experiments import Run
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs import lock
from cskd_hf.runs.recipe_differences import recipe_differences
from cskd_hf.runs.summary import Summary, is_untrained, read_recipe, read_summary

Status = Literal["finished", "unfinished", "not started", "another recipe", "unreadable"]


@dataclass(frozen=True)
class RunState:
    """The state of a run folder.

    Attributes:
        epochs: trained so far.
        recipe: the folder's, if it can be read.
        summary: of a finished run.
        problem: the keys in which another recipe differs, or why the folder cannot be read.
    """

    status: Status
    epochs: int = 0
    recipe: Recipe | None = None
    summary: Summary | None = None
    problem: str = ""

    @property
    def trainable(self) -> bool:
        """Whether training would start or resume here."""
        return self.status in ("not started", "unfinished")

    def describe(self, run: Run) -> str:
        if self.status == "unfinished":
            return f"unfinished ({self.epochs} of {run.expected.scheduler.total_epochs} epochs)"
        return f"{self.status} ({self.problem})" if self.problem else self.status


def inspect_runs(runs: Mapping[RunKey, Run]) -> dict[RunKey, RunState]:
    return {key: inspect_run(run) for key, run in runs.items()}


def inspect_run(run: Run) -> RunState:
    """The state of a run's folder; read-only."""
    folder = run.folder
    if not (folder / "recipe.yaml").is_file():
        # A starting run locks its folder before it writes the recipe.
        if not folder.exists() or (folder.is_dir() and all(file.name == lock.NAME for file in folder.iterdir())):
            return RunState("not started")
        return RunState("unreadable", problem="not a run folder: no recipe.yaml")
    try:
        recipe = read_recipe(folder)
        summary = read_summary(folder, recipe) if (folder / "summary.json").is_file() else None
    except UserError as error:
        return RunState("unreadable", problem=" | ".join(str(error).splitlines()))
    differences = [
        str(difference)
        for difference in recipe_differences(recipe, run.expected)
        # A teacher is the same run wherever the folder of runs has moved.
        if difference.key != "method.teacher" or Path(difference.old).name != Path(difference.new).name
    ]
    if differences and not is_untrained(folder):
        return RunState("another recipe", recipe=recipe, problem="; ".join(differences))
    if summary is not None:
        return RunState("finished", recipe.scheduler.total_epochs, recipe, summary)
    metrics = folder / "metrics.jsonl"
    # One line per epoch; a kill may have truncated the last one.
    epochs = metrics.read_text(encoding="utf-8").count("\n") if metrics.is_file() else 0
    return RunState("unfinished", epochs, recipe)
