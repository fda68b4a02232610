"""Model cards of releases."""

from __future__ import annotations

import dataclasses
from typing import Any

import yaml

from cskd_hf.hub.card import release_card
from cskd_hf.hub.licences import Licence
from cskd_hf.hub.source import Release, Source
from cskd_hf.recipe.recipe import Recipe

NAME = "acme/cskd-tiny"
APACHE = Licence("apache-2.0")


def card(source: Source, recipe: Recipe | None = None, licence: Licence = APACHE, **keywords: Any) -> str:
    source = source if recipe is None else dataclasses.replace(source, recipe=recipe)
    return release_card(Release(source, NAME, licence, **keywords))


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])
