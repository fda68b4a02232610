"""The run folder: the interface between commands, and what other people's scripts read.

    recipe.yaml environment.json metrics.jsonl summary.json predictions.safetensors
    checkpoints/ figures/ model/ report.html

`summary.json` is written last but for the report: a folder that has it is a finished run.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskd_hf.errors import UserError
from cskd_hf.files import write_json
from cskd_hf.recipe.recipe import Recipe, dump_recipe
from cskd_hf.runs import lock as run_lock
from cskd_hf.runs.checkpoint import list_checkpoints, newest_checkpoint
from cskd_hf.runs.environment import describe_environment
from cskd_hf.runs.summary import read_recipe, recipe_differences


def start(recipe: Recipe, num_processes: int) -> tuple[Path, Path | None, bool]:
    """Make or reopen the folder of a resolved recipe. Call it in one process.

    Returns:
        The folder, the checkpoint to resume from, and whether the run is finished already.

    Raises:
        UserError: the folder holds something else, another recipe's run, or any run under `run.resume: never`.
    """
    assert recipe.run.output_dir is not None
    folder, resume = Path(recipe.run.output_dir), recipe.run.resume
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output_dir: {folder} is a file; name a folder")
    held = folder / "recipe.yaml"
    if not held.is_file():
        if folder.is_dir() and any(file.name != run_lock.NAME for file in folder.iterdir()):
            raise UserError(f"run.output_dir: {folder} is not empty and holds no run; name another folder")
    elif resume == "never":
        raise UserError(
            f"run.resume: never, but {folder} holds a run; name another run.output_dir or remove the folder"
        )
    else:
        try:
            different = [str(difference) for difference in recipe_differences(read_recipe(folder), recipe)]
        except UserError as error:
            different = [f"{held} cannot be read by this version: {error}"]
        if different and resume != "force":
            raise UserError(
                f"run.output_dir: {folder} holds a run of another recipe; name another folder, or write "
                "run.resume=force to go on with this one\n" + "\n".join(different)
            )
        if (folder / "summary.json").is_file() and not different:
            return folder, None, True
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_lock.lock(folder)
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written: {error}") from None
    (folder / "summary.json").unlink(missing_ok=True)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is not None and (folder / "environment.json").is_file():
        before = json.loads((folder / "environment.json").read_text(encoding="utf-8"))["num_processes"]
        if before != num_processes:
            print(
                f"warning: {folder} was trained on {before} processes and goes on with {num_processes}: an update now "
                f"has {num_processes}/{before} as many images, and the learning rate is as before",
                file=sys.stderr,
            )
    try:
        dump_recipe(recipe, held)
        environment = describe_environment(num_processes, recipe.run.mixed_precision or "no")
        write_json(folder / "environment.json", environment)
    except OSError as error:
        raise UserError(f"run.output_dir: {folder} cannot be written: {error}") from None
    if checkpoint is None and list_checkpoints(folder / "checkpoints"):
        raise UserError(
            f"{folder / 'checkpoints'}: every checkpoint is damaged; remove them to start from the beginning"
        )
    return folder, checkpoint, False


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """One epoch's line of metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: _short(value) for key, value in line.items()}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def cut_metrics(folder: Path, epoch: int) -> None:
    """Keep the lines of the epochs before `epoch`: the others are about to be trained again."""
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["epoch"] < epoch:
                kept.append(line + "\n")
        except ValueError:
            break  # a kill cut it
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _short(value: Any) -> Any:
    """Nine digits: more than any curve needs, and the same after a restart summed an epoch in two parts."""
    return float(f"{value:.9g}") if isinstance(value, float) else value
