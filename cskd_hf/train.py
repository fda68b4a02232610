"""Train a classifier from a recipe: images → weights that plain timm loads, and a report.

    cskd-train recipes/imagenet_resnet50.yaml [section.key=value ...]
    accelerate launch -q -m cskd_hf.train recipes/imagenet_resnet50.yaml [section.key=value ...]    # several devices

Rerun the same command to resume.
"""

from __future__ import annotations

import inspect
import signal
import textwrap
from collections.abc import Iterable, Sequence

from cskd_hf.errors import exit_on_signals, run_command

_HELP = """\
sections (every key: python -m cskd_hf.recipe --settings)
{sections}

methods (method.name)
{methods}

recipes
{recipes}

examples
  # fine-tune on your own FOLDER/CLASS/*.jpg, a fifth of it for testing
  cskd-train finetune data.dataset=FOLDER data.test_split=0.2
  # change settings
  cskd-train digits_resnet10 optimizer.lr=0.05 'method={{name: cross_entropy}}'
  # stop after an hour; the same command again resumes
  cskd-train digits_resnet10 run.max_hours=1

several devices
  accelerate launch -q -m cskd_hf.train RECIPE [section.key=value ...]
  torchrun --nproc_per_node 2 -m cskd_hf.train RECIPE [section.key=value ...]
"""


def main(argv: Sequence[str] | None = None) -> int:
    from cskd_hf.engine.cpu_tuning import limit_openmp_spinning
    from cskd_hf.recipe.arguments import RecipeParser
    from cskd_hf.recipe.recipe import load_recipe

    parser = RecipeParser(
        "cskd-train",
        description="Train a classifier from a recipe. Rerun the same command to resume.",
        epilog=_epilog(),
    )
    args = parser.parse(argv)
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


def _epilog() -> str:
    """The names that a recipe and its overrides may use."""
    from cskd_hf.methods import METHODS
    from cskd_hf.recipe.recipe import Recipe
    from cskd_hf.recipe.yaml_io import shipped_recipes

    summaries = {name: (inspect.getdoc(field.annotation) or "") for name, field in Recipe.model_fields.items()}
    summaries["method"] = "The loss, and its coefficients."
    return _HELP.format(
        sections="\n".join(f"  {name:10s} {summary.splitlines()[0]}" for name, summary in summaries.items()),
        methods=_wrapped(METHODS),
        recipes=_wrapped(shipped_recipes()),
    )


def _wrapped(names: Iterable[str]) -> str:
    return textwrap.fill(", ".join(names), 80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


def cli() -> None:
    """The console script cskd-train."""
    exit_on_signals()  # before the slow imports, which are all in `main`
    run_command(main)


if __name__ == "__main__":
    cli()
