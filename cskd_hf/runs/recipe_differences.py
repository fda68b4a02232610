"""The settings that make a folder's recipe another experiment."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from cskd_hf.recipe.recipe import Recipe, identity


class Difference(NamedTuple):
    """A setting that makes two recipes different experiments; `str()` is the line to print.

    Attributes:
        key: "section.key".
        old, new: JSON, or "absent" where the recipe's method has no such setting.
    """

    key: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.key}: {self.old} in the folder, {self.new} expected"


_FOUND = ("data.train_split", "data.test_split", "model.num_classes", "run.mixed_precision")


def recipe_differences(old: Recipe, new: Recipe) -> list[Difference]:
    """The settings in which a folder's recipe `old` is another experiment than `new`.

    A trained recipe knows what only training finds out, the keys of `_FOUND`; where `new` leaves these null, any value
    of `old` agrees.
    """
    before, after = identity(old), identity(new)
    differences = []
    for section, settings in after.items():
        for key in sorted(before[section].keys() | settings.keys()):
            difference = Difference(f"{section}.{key}", _as_json(before[section], key), _as_json(settings, key))
            unknown = difference.new == "null" and difference.key in _FOUND
            if difference.old != difference.new and not unknown:
                differences.append(difference)
    return differences


def _as_json(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "absent"
