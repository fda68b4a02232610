"""The commands' arguments, such as `RECIPE [section.key=value ...]`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from cskd_hf.errors import UserError
from cskd_hf.recipe.suggest import did_you_mean


class CommandParser(argparse.ArgumentParser):
    """A mistake is one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        meant = did_you_mean(unknown[1], self._option_string_actions) if unknown else ""
        raise UserError(f"{message}; {meant or f'{self.prog} --help shows what may follow'}")


class RecipeParser(CommandParser):
    """Reads a recipe and its overrides. An option may take the place of an optional recipe."""

    def __init__(self, prog: str, recipe_is_optional: bool = False, **settings: Any) -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        settings = {"usage": f"{prog} RECIPE [section.key=value ...]", **settings}
        super().__init__(prog, formatter_class=formatter, **settings)
        self.recipe_is_optional = recipe_is_optional
        self.add_argument("recipe", nargs="?", metavar="RECIPE", help="YAML file, or the name of a shipped recipe")
        self.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings to change; YAML values")

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The arguments; options may stand anywhere. An unknown one is left to the overrides' messages.

        Raises:
            UserError: no recipe, or an option without its value.
        """
        args, unknown = self.parse_known_intermixed_args(argv)
        args.overrides = [*unknown, *args.overrides]
        if args.recipe is None and (unknown or not self.recipe_is_optional):
            read = f"read {unknown[0]}, but no recipe" if unknown else "no recipe"
            self.error(f"{read}; write {self.prog} RECIPE")
        return args
