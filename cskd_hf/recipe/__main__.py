"""Print a recipe as it would run, every setting, or the JSON Schema of recipes.

python -m cskd_hf.recipe RECIPE [section.key=value ...]
python -m cskd_hf.recipe --settings > cskd_hf/recipe/SETTINGS.md
python -m cskd_hf.recipe --schema > recipe.schema.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cskd_hf.errors import run_command
from cskd_hf.recipe import yaml_io
from cskd_hf.recipe.arguments import RecipeParser
from cskd_hf.recipe.recipe import Recipe, load_recipe
from cskd_hf.recipe.settings import settings_page


def main(argv: Sequence[str] | None = None) -> int:
    parser = RecipeParser(
        "python -m cskd_hf.recipe",
        recipe_is_optional=True,
        usage="python -m cskd_hf.recipe RECIPE [section.key=value ...] | --settings | --schema",
        description="Print a recipe with overrides and defaults.",
    )
    parser.add_argument("--settings", action="store_true", help="instead, print every setting as Markdown")
    parser.add_argument("--schema", action="store_true", help="instead, print the JSON Schema of recipes, for editors")
    args = parser.parse(argv)
    if args.schema:
        print(json.dumps(Recipe.model_json_schema(), indent=2))
    elif args.settings:
        print(settings_page(), end="")
    elif args.recipe is None:
        parser.error("name a recipe, or write --settings or --schema")
    else:
        print(yaml_io.dumps(load_recipe(args.recipe, args.overrides).to_dict()), end="")
    return 0


if __name__ == "__main__":
    run_command(main)
