"""Remove the training machine's paths from everything that is published."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cskd_hf.hub.provenance import data_source
from cskd_hf.recipe.recipe import Recipe

# An absolute path, or one from a home folder, up to what ends a word in a command or a note. Neither the // of a URL
# nor the slash of owner/name or images/s.
_PATH = re.compile(r"(?<![\w.:/~-])(?:~[\w.-]*|[A-Za-z]:(?=[\\/]))?[\\/](?![\\/])[^\s'\",;:|=(){}\[\]<>]+")


class PathScrubber:
    """Reduces each path to its last component.

    Args:
        recipe: of the run. Its folders are replaced by name, so they may contain spaces.
    """

    def __init__(self, recipe: Recipe) -> None:
        data = data_source(recipe)
        known = () if data.entry is None else (data.name, *data.entry.alternatives)
        folders = [recipe.run.output_dir, recipe.model.checkpoint]
        source, _, folder = recipe.model.model_name.partition(":")
        folders += [folder] if source == "local-dir" else []
        folders += [value for value in recipe.to_dict()["method"].values() if isinstance(value, str) and "/" in value]
        if recipe.data.dataset not in (*known, data.hub_id):
            folders.append(recipe.data.dataset)
        spellings = {
            spelling: Path(folder).name or "."
            for folder in folders
            if folder is not None
            for spelling in (os.path.abspath(folder), os.path.realpath(folder), folder.rstrip("/"))
        }
        self._names = dict(sorted(spellings.items(), key=lambda item: len(item[0]), reverse=True))

    def text(self, text: str) -> str:
        for folder, name in self._names.items():
            text = text.replace(folder, name)
        return _PATH.sub(lambda match: re.split(r"[\\/]", match.group().rstrip("\\/"))[-1], text)

    def value(self, value: Any) -> Any:
        """Scrub every text in nested lists and mappings."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, (list, tuple)) else value

    def recipe(self, recipe: Recipe) -> dict[str, dict[str, Any]]:
        """The recipe to publish: without an output folder or a Hub repository."""
        settings = self.value(recipe.to_dict())
        settings["run"] |= {"output_dir": None, "hub_model_id": None, "hub_private_repo": True, "hub_license": None}
        return settings
