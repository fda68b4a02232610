"""What of a run may go public: texts without the paths of the machine that trained it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskd_hf.hub.provenance import data_source
from cskd_hf.recipe.recipe import Recipe

# An absolute path, or one from a home folder, up to what ends a word in a command or a note. Not the // of an address,
# and not the slash of owner/name or images/s.
_PATH = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*|[A-Za-z]:(?=[\\/]))?[\\/](?![\\/])[^\s'\",;:|=(){}\[\]<>]+")


class Public:
    """Cuts every path of one run down to its last part.

    Args:
        recipe: of the run: its folders are known by name, also where a name has spaces.
    """

    def __init__(self, recipe: Recipe) -> None:
        settings = recipe.to_dict()["method"].values()
        named = [recipe.run.output_dir, *(value for value in settings if isinstance(value, str) and "/" in value)]
        if not _is_public_set(recipe):
            named.append(recipe.data.dataset)
        self._folders: dict[str, str] = {}
        for name in named:
            if name is not None:
                for spelling in (os.path.abspath(name), os.path.realpath(name), name.rstrip("/")):
                    self._folders[spelling] = Path(name).name or "."

    def text(self, text: str) -> str:
        for folder in sorted(self._folders, key=len, reverse=True):
            text = text.replace(folder, self._folders[folder])
        return _PATH.sub(lambda found: re.split(r"[\\/]", found.group().rstrip("\\/"))[-1], text)

    def value(self, value: Any) -> Any:
        """The same lists and mappings with every text in them cut."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(held) for key, held in value.items()}
        return [self.value(held) for held in value] if isinstance(value, (list, tuple)) else value


def public_recipe(recipe: Recipe, public: Public) -> dict[str, dict[str, Any]]:
    """The recipe that anybody can rerun: folders by their last part, and neither output folder nor upload named."""
    settings = public.value(recipe.to_dict())
    settings["run"] |= {"output_dir": None, "hub_model_id": None, "hub_private_repo": True}
    return settings


def _is_public_set(recipe: Recipe) -> bool:
    """Whether `data.dataset` is a name that means the same to everybody, and no folder."""
    name, source = recipe.data.dataset, data_source(recipe)
    known = () if source.entry is None else (source.name, *source.entry.alternatives)
    return name in (*known, source.hub_id)
