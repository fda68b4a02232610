"""The run folder: the interface between commands, and what other people's scripts read.

    recipe.yaml environment.json metrics.jsonl summary.json predictions.safetensors
    checkpoints/ figures/ model/ report.html

A folder with `summary.json` is a finished run: only the report is written after it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.files import write_text
from cskd_hf.recipe.recipe import Recipe, dump_recipe
from cskd_hf.runs import lock as run_lock
from cskd_hf.runs.checkpoint import list_checkpoints, newest_checkpoint, step_of
from cskd_hf.runs.environment import NAME as ENVIRONMENT
from cskd_hf.runs.environment import describe_environment, read_environments, record_environment
from cskd_hf.runs.summary import NAME as SUMMARY
from cskd_hf.runs.summary import read_recipe, recipe_differences


def start(recipe: Recipe, num_processes: int) -> tuple[Path, Path | None, bool]:
    """Create or reopen the folder of a resolved recipe, and lock it. Call it on one rank.

    Returns:
        The folder, the checkpoint to resume from, and whether the run is already finished.

    Raises:
        UserError: the folder holds something else, another recipe's run, a run in progress, or any run under
            `run.resume: never`.
    """
    assert recipe.run.output_dir is not None
    folder, resume = Path(recipe.run.output_dir), recipe.run.resume
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output_dir: {folder} is a file; name a folder")
    if (folder / "recipe.yaml").is_file():
        if resume == "never":
            raise UserError(
                f"run.resume: never, but {folder} holds a run; name another run.output_dir, or remove the folder"
            )
        differences = _differences(folder, recipe)
        if differences and resume != "force":
            raise UserError(
                f"run.output_dir: {folder} holds a run of another recipe; name another folder, or set "
                "run.resume=force to continue that run with this recipe\n" + "\n".join(differences)
            )
        if (folder / SUMMARY).is_file() and not differences:
            return folder, None, True
    elif folder.is_dir() and any(file.name != run_lock.NAME for file in folder.iterdir()):
        raise UserError(f"run.output_dir: {folder} is not empty and holds no run; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_lock.lock(folder)
        checkpoint = newest_checkpoint(folder / "checkpoints")
        if checkpoint is None and list_checkpoints(folder / "checkpoints"):
            raise UserError(f"{folder / 'checkpoints'}: every checkpoint is damaged; remove them to start over")
        (folder / SUMMARY).unlink(missing_ok=True)
        _warn_of_resize(folder, checkpoint, num_processes)
        dump_recipe(recipe, folder / "recipe.yaml")
        environment = describe_environment(num_processes, recipe.run.mixed_precision or "no")
        record_environment(folder, environment, 0 if checkpoint is None else step_of(checkpoint))
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written: {error}") from None
    return folder, checkpoint, False


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """Append one epoch's line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: _rounded(value) for key, value in line.items()}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_metrics(folder: Path, epoch: int) -> None:
    """Drop the lines of `epoch` and later, which are about to be trained again."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["epoch"] < epoch:
                lines.append(line + "\n")
        except ValueError:
            break  # truncated by a kill
    write_text(path, "".join(lines))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """One dict per epoch."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _differences(folder: Path, recipe: Recipe) -> list[str]:
    try:
        return [str(difference) for difference in recipe_differences(read_recipe(folder), recipe)]
    except UserError as error:
        return [f"{folder / 'recipe.yaml'} cannot be read by this version: {error}"]


def _warn_of_resize(folder: Path, checkpoint: Path | None, num_processes: int) -> None:
    if checkpoint is None or not (folder / ENVIRONMENT).is_file():
        return
    before = read_environments(folder)[-1]["num_processes"]
    if before != num_processes:
        print(
            f"warning: {folder} was trained on {before} processes and resumes on {num_processes}: an update now has "
            f"{num_processes}/{before} as many images, at the same learning rate",
            file=sys.stderr,
        )


def _rounded(value: Any) -> Any:
    """Nine digits: more than any curve needs, and equal when a restart summed an epoch in two parts."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
