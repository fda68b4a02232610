"""The catalog's facts."""

from __future__ import annotations

import re

import pytest
from recipe_files import ROOT

from cskd_hf.hub.licences import HUB_LICENCES
from cskd_hf.recipe.catalog import CATALOG


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_is_complete(name):
    entry = CATALOG[name]
    splits = {entry.train_split, entry.test_split, *([entry.holdout] if entry.holdout else [])}
    assert splits == set(entry.num_images)
    for ids in (entry.path, *entry.alternatives):
        assert ids is None or re.fullmatch(r"[\w.-]+/[\w.-]+", ids)
    assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
    for line in (entry.citation, entry.terms, entry.official_split):
        assert line
        assert "\n" not in line
    assert re.search(r"(19|20)\d\d", entry.citation)
    assert entry.licence in {*HUB_LICENCES, "unknown"}
    if entry.data_files:
        assert set(entry.data_files) >= splits
    if entry.prepare is not None:
        assert (ROOT / entry.prepare).is_file()
