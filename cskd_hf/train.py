"""Train a classifier from a recipe: images → weights that plain timm loads, and a report.

    accelerate launch -m cskd_hf.train recipes/imagenet_resnet50.yaml [section.key=value ...]

Rerun the same command to resume.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Sequence

from cskd_hf.errors import exit_on_signals, run_command


def main(argv: Sequence[str] | None = None) -> int:
    from cskd_hf.engine.cpu_tuning import limit_openmp_spinning
    from cskd_hf.recipe.recipe import load_recipe

    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.train",
        description="Train a classifier from a recipe; rerun the same command to resume.",
    )
    parser.add_argument("recipe", help="YAML file or shipped recipe, such as recipes/digits_resnet10.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="overrides, such as optimizer.lr=0.05"
    )
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipe(args.recipe, args.overrides)

    # Slow imports come only after the recipe is known to be valid, so that a mistake in it shows at once.
    limit_openmp_spinning()
    from cskd_hf.engine.trainer import train
    from cskd_hf.hub.licences import choose_licence
    from cskd_hf.hub.provenance import terms_of
    from cskd_hf.hub.publish import publish_run
    from cskd_hf.hub.upload import check_target

    settings = recipe.run
    if settings.hub_model_id:  # a missing token or licence shows before hours of training
        check_target(settings.hub_model_id)
        choose_licence(settings.hub_license, terms_of(recipe), option="run.hub_license")
    outcome = train(recipe)
    if settings.hub_model_id and outcome.trained is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # an upload says how to finish it
        private, licence = settings.hub_private_repo, settings.hub_license
        return publish_run(outcome.trained, settings.hub_model_id, private=private, licence=licence)
    return outcome.status


def cli() -> None:
    """The console script cskd-train."""
    exit_on_signals()  # before the slow imports, which are all in `main`
    run_command(main)


if __name__ == "__main__":
    cli()
