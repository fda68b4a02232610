"""Print a recipe as it would run, or the JSON Schema of recipes.

python -m cskd_hf.recipe RECIPE [section.key=value ...]
python -m cskd_hf.recipe --schema > recipe.schema.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from cskd_hf.errors import run_command
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.recipe import Recipe, load_recipe


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cskd_hf.recipe",
        description="Print a recipe with overrides and defaults, or the JSON Schema of recipes.",
    )
    parser.add_argument("recipe", nargs="?", help="YAML file or shipped recipe")
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="overrides, such as optimizer.lr=0.05"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of recipes, for editors")
    args = parser.parse_intermixed_args(argv)
    if args.schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
    elif args.recipe is None:
        parser.error("name a recipe, or write --schema")
    else:
        print(yaml_io.dumps(load_recipe(args.recipe, args.overrides).to_dict()), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
