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
from typing import Any, NamedTuple
from uuid import uuid4

from cskd_hf.data.fingerprint import describe_split, image_differences
from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError
from cskd_hf.files import advice, sync, write_text
from cskd_hf.recipe.recipe import Recipe, dump_recipe, identity
from cskd_hf.recipe.sections import DataSection
from cskd_hf.runs import lock as run_lock
from cskd_hf.runs.checkpoint_folders import list_checkpoints, newest_checkpoint, step_of
from cskd_hf.runs.disk import probe
from cskd_hf.runs.environment import describe_environment, read_environments, record_environment
from cskd_hf.runs.recipe_differences import recipe_differences
from cskd_hf.runs.summary import NAME as SUMMARY
from cskd_hf.runs.summary import PREVIOUS as PREVIOUS_SUMMARY
from cskd_hf.runs.summary import is_untrained, read_recipe


class Opened(NamedTuple):
    """A run folder that fits recipe and images, or whose run is forced to continue.

    Attributes:
        folder: the run folder, locked unless the run is finished.
        checkpoint: the one to resume from, or None.
        finished: whether its result is already there.
        other_images: whether a forced resume trains on other images.
    """

    folder: Path
    checkpoint: Path | None
    finished: bool
    other_images: bool


def open_run(recipe: Recipe, images: Mapping[str, Any]) -> Opened:
    """Create or reopen the folder of a resolved recipe, and lock it. Call it on one rank, and `begin_run` after it.

    Nothing in the folder changes: a checkpoint may still turn out not to fit. `images` are from `describe_images`.

    Raises:
        UserError: the folder holds something else, a run trained by another recipe or on other images, a run in
            progress, or any run under `run.resume: never`.
    """
    assert recipe.run.output_dir is not None
    folder, resume = Path(recipe.run.output_dir), recipe.run.resume
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run.output_dir: {folder} is a file; name a folder")
    other_images: list[str] = []
    if (folder / "recipe.yaml").is_file():
        if resume == "never":
            raise UserError(
                f"run.resume: never, but {folder} holds a run; name another run.output_dir, or remove the folder"
            )
        settings, other_images = ([], []) if is_untrained(folder) else _differences(folder, recipe, images)
        if (settings or other_images) and resume != "force":
            what = "another recipe" if settings else "other images"
            raise UserError(
                f"run.output_dir: {folder} holds a run of {what}; name another folder, or set run.resume=force to "
                f"continue that run with {'this recipe' if settings else 'these images'}\n"
                + "\n".join(settings + other_images)
            )
        if (folder / SUMMARY).is_file() and not settings and not other_images:
            return Opened(folder, None, True, False)
    elif folder.is_dir() and any(file.name != run_lock.NAME for file in folder.iterdir()):
        raise UserError(f"run.output_dir: {folder} is not empty and holds no run; name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run_lock.lock(folder)
        probe(folder)
    except OSError as error:
        raise _unwritable(folder, error) from None
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None and list_checkpoints(folder / "checkpoints"):
        raise UserError(f"{folder / 'checkpoints'}: every checkpoint is damaged; remove them to start over")
    return Opened(folder, checkpoint, False, bool(other_images))


def begin_run(opened: Opened, recipe: Recipe, images: Mapping[str, Any], num_processes: int) -> None:
    """Record recipe, environment and images, once the checkpoint is loaded. A forced run sets the old summary aside.

    Raises:
        UserError: the folder cannot be written.
    """
    folder, checkpoint = opened.folder, opened.checkpoint
    try:
        _warn_of_resize(folder, checkpoint, num_processes)
        if (folder / SUMMARY).is_file():
            os.replace(folder / SUMMARY, folder / PREVIOUS_SUMMARY)
        environment = describe_environment(num_processes, recipe.run.mixed_precision or "no")
        run_id = uuid4().hex[:12] if checkpoint is None else read_environments(folder)[-1]["run_id"]
        environment |= {"run_id": run_id, "images": images, "settings": identity(recipe)}
        record_environment(folder, environment, 0 if checkpoint is None else step_of(checkpoint))
        dump_recipe(recipe, folder / "recipe.yaml")
    except OSError as error:
        raise _unwritable(folder, error) from None


def check_share(run: Path, split: ImageSplit, data: DataSection) -> None:
    """Check that a share of images to test on is the one that the run did not train on.

    Raises:
        UserError: the images are others, so that the share has training images in it.
    """
    if isinstance(data.test_split, float):
        recorded = read_environments(run)[-1]["images"]
        other_images = image_differences({"test": recorded["test"]}, {"test": describe_split(split)})
        if other_images:
            raise UserError(
                f"data.test_split: {data.dataset} has other images than {run}, which may be trained on some of "
                f"{data.test_name}; write data.test_split={split.name} to test on every image\n{other_images[0]}"
            )


def append_metrics(folder: Path, line: Mapping[str, Any]) -> None:
    """Append one epoch's line to metrics.jsonl; the file is replaced, since some file systems cannot append."""
    path = folder / "metrics.jsonl"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    write_text(path, before + json.dumps({key: _rounded(value) for key, value in line.items()}) + "\n")
    sync(path)


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
    """One dict per epoch; none before the first."""
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def _unwritable(folder: Path, error: OSError) -> UserError:
    todo = advice(error, folder) or "it needs a file system that creates, renames and syncs files and folders"
    return UserError(f"run.output_dir: {folder} cannot be written: {error}; {todo}, or name another folder")


def _differences(folder: Path, recipe: Recipe, images: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The settings and the images in which the run in the folder differs, one line each."""
    try:
        settings = recipe_differences(read_recipe(folder), recipe)
    except UserError as error:
        return [f"{folder / 'recipe.yaml'} cannot be read by this version: {error}"], []
    other_images = image_differences(read_environments(folder)[-1]["images"], images)
    if not other_images:  # the same images have moved
        settings = [difference for difference in settings if difference.key != "data.dataset"]
    return list(map(str, settings)), other_images


def _warn_of_resize(folder: Path, checkpoint: Path | None, num_processes: int) -> None:
    if checkpoint is None:
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
