"""Check a recipe's data before training, or measure what limits the training speed.

    cskd-check recipes/imagenet_resnet50.yaml [section.key=value ...] [--full]
    cskd-check recipes/imagenet_resnet50.yaml [section.key=value ...] --speed

Exit status 0: no problems; 1: problems, listed at the end; 2: the recipe is wrong or the data cannot be opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cskd_hf.errors import run_command
from cskd_hf.recipe.arguments import RecipeParser
from cskd_hf.recipe.recipe import load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = RecipeParser(
        "cskd-check",
        description="Check a recipe's data before training, or measure its training speed.",
        usage="cskd-check RECIPE [section.key=value ...] [--full | --speed]",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="decode every image, even of 5,000 or more")
    mode.add_argument(
        "--speed", action="store_true", help="instead, time the loader and the training step and report the bottleneck"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="duration of --speed (default: 30)")
    args = parser.parse(argv)
    if not 0 < args.seconds <= 3600:
        parser.error(f"--seconds: read {args.seconds:g}, expected a number above 0 and at most 3600")
    recipe = load_recipe(args.recipe, args.overrides)
    if args.speed:
        from cskd_hf.engine.cpu_tuning import limit_openmp_spinning

        limit_openmp_spinning()  # before torch is imported
        from cskd_hf.checks.speed import check_speed

        return check_speed(recipe, args.seconds)
    from cskd_hf.checks.run import check

    return check(recipe, args.full)


cli = partial(run_command, main)  # the console script cskd-check

if __name__ == "__main__":
    cli()
