"""Train a classifier from a recipe: images → weights that plain timm loads, and a report.

    accelerate launch -m cskd_hf.train recipes/imagenet_resnet50.yaml [section.key=value ...]

The same command again goes on where a stopped run stood.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cskd_hf.engine.trainer import train
from cskd_hf.errors import run_command
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.runs import lock as run_lock


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.train",
        description="Train a classifier from a recipe; the same command again resumes a stopped run.",
    )
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped one: recipes/digits_resnet10.yaml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="optimizer.lr=0.05")
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)
    try:
        return train(recipe)
    finally:
        run_lock.release_all()


if __name__ == "__main__":
    run_command(main)
