"""A small finished run with a hold-out set, for tests of its folder."""

from __future__ import annotations

from pathlib import Path

from command_runs import Result, quick, write_recipe


def whole_run(folder: Path, images: Path) -> tuple[Path, Path, Result]:
    """Train; returns recipe, run folder and output."""
    recipe = write_recipe(
        folder / "run.yaml",
        images,
        data={"holdout": 0.2},
        model={"model_name": "preactresnet10_32px"},
        transform={"input_size": [3, 16, 16]},
    )
    done = quick(recipe)
    assert done.status == 0, done.stderr
    return recipe, recipe.with_suffix(""), done
