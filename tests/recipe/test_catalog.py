"""The catalog's facts."""

from __future__ import annotations

import re

import pytest
from recipe_files import ROOT

from cskd_hf.recipe.catalog import CATALOG


def test_class_and_image_counts():
    splits = {name: (entry.num_classes, tuple(entry.num_images.values())) for name, entry in CATALOG.items()}
    assert splits == {
        "imagenet": (1000, (1_281_167, 50_000)),
        "cub200": (200, (5_994, 5_794)),
        "stanford_dogs": (120, (12_000, 8_580)),
        "mit67": (67, (5_360, 1_340)),
        "tiny_imagenet": (200, (100_000, 10_000)),
        "cifar100": (100, (50_000, 10_000)),
        "fashion_mnist_1k": (10, (1_000, 1_000, 10_000)),
        "icons": (200, (6_838, 1_052, 2_631)),
        "digits": (10, (200, 300, 1297)),
    }


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
    if entry.data_files:
        assert set(entry.data_files) >= splits
    if entry.prepare is not None:
        assert (ROOT / entry.prepare).is_file()
