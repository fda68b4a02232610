"""What became of the runs behind a table: finished, cut short, never started, of another recipe, or unreadable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cskd_hf.errors import UserError
from cskd_hf.paper.experiments import Run
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs import lock as run_lock
from cskd_hf.runs.summary import Summary, read_recipe, read_summary, recipe_differences

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
    # A teacher is the same run wherever the folder of runs has moved.
    different = [
        str(difference)
        for difference in recipe_differences(recipe, run.expected)
        if difference.key != "method.teacher" or Path(difference.old).name != Path(difference.new).name
    ]
    if different:
        return Found("another recipe", recipe=recipe, problem="; ".join(different))
    epochs = recipe.scheduler.total_epochs if summary else _epochs_trained(folder)
    return Found("finished" if summary else "unfinished", epochs, recipe, summary)


def _epochs_trained(folder: Path) -> int:
    """Whole epochs that metrics.jsonl tells of; a kill may have cut its last line."""
    try:
        return (folder / "metrics.jsonl").read_text(encoding="utf-8").count("\n")
    except FileNotFoundError:
        return 0
