"""Experiment trackers, `run.report_to`: tensorboard, trackio, wandb."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator

from cskd_hf.errors import UserError, one_line
from cskd_hf.recipe.recipe import Recipe
from cskd_hf.runs.environment import read_environments

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}


def check_trackers(recipe: Recipe) -> None:
    """Reject trackers that are not installed; Accelerate would leave them out in silence.

    Raises:
        UserError: with the command that installs them.
    """
    missing = [name for name in recipe.run.report_to if not any(map(_is_installed, _PACKAGES[name]))]
    if missing:
        raise UserError(
            f"run.report_to: {', '.join(missing)} not installed; pip install {' '.join(missing)}, or leave it out"
        )


def start_trackers(accelerator: Accelerator, recipe: Recipe, step: int) -> None:
    """Start `run.report_to` under the run folder's name; a resumed run continues its record.

    Args:
        accelerator: with `log_with` and `project_dir` of the recipe.
        recipe: of an open run folder.
        step: updates made so far.

    Raises:
        UserError: a tracker cannot start.
    """
    if not recipe.run.report_to or not accelerator.is_main_process:
        return
    assert recipe.run.output_dir is not None
    folder = Path(recipe.run.output_dir)
    run_id = read_environments(folder)[-1]["run_id"]
    options = {
        "wandb": {"name": folder.name, "id": run_id, "resume": "allow", "dir": str(folder)},
        "trackio": {"name": f"{folder.name}-{run_id}", "resume": "allow"},
        # Drops what a killed run had logged after the checkpoint.
        "tensorboard": {"purge_step": step + 1} if step else {},
    }
    sections = recipe.to_dict().items()
    settings = {f"{section}.{key}": str(value) for section, keys in sections for key, value in keys.items()}
    try:
        accelerator.init_trackers("cskd_hf", config=settings, init_kwargs=options)
    except Exception as error:  # each tracker has its own: no login, no network, a broken installation
        trackers, reason = ", ".join(recipe.run.report_to), one_line(error)
        raise UserError(f"run.report_to: {trackers} cannot start: {type(error).__name__}: {reason}") from error


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder of logs called wandb is a package without a file
