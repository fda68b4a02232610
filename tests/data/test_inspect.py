"""The checks at the start of training, and the digests that find duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_runs import ROOT, draw_folder, quick, write_recipe
from small_sets import as_arrow

from cskd_hf.data import duplicates, inspect, statistics
from cskd_hf.data.decode import Conversion, survey
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.catalog import CATALOG
from cskd_hf.recipe.recipe import load_recipe
from cskd_hf.recipe.resolve import resolve


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return draw_folder(tmp_path / "images", {"train": (4, 3), "test": (2, 2)})


def quick_check(recipe: Path) -> inspect.QuickCheck:
    resolved = resolve(load_recipe(recipe))
    return inspect.quick_check(load_images(resolved.data), resolved.data, resolved.transform)


def test_digests_do_not_depend_on_the_selected_rows(tmp_path, folder):
    recipe = write_recipe(tmp_path / "run.yaml", as_arrow(folder, tmp_path / "arrow"))
    train = load_images(resolve(load_recipe(recipe)).data).train
    for rows in ([6, 0, 3], [2], list(range(7))):
        part = train.take(np.array(rows))
        assert (duplicates.image_digests(part) == duplicates.image_digests(train)[rows]).all()
        found = statistics.image_statistics(part, range(len(rows)), num_decoded=0, conversion=Conversion())
        assert found.digests == duplicates.image_digests(part).tolist()


def test_the_quick_check_decodes_only_a_sample(tmp_path, folder, monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(statistics, "survey", lambda *of: calls.append(of) or survey(*of))
    monkeypatch.setattr(inspect, "NUM_DECODED", 2)
    assert quick_check(write_recipe(tmp_path / "run.yaml", folder)).problems == []
    assert len(calls) == 2 * 2


def test_classes_other_than_the_catalogs_stop_training(monkeypatch):
    entry = CATALOG["digits"]
    monkeypatch.setitem(CATALOG, "digits", type(entry)(**vars(entry) | {"num_classes": 11}))
    with pytest.raises(UserError, match="digits has 11 classes"):
        quick_check(ROOT / "recipes" / "digits_resnet10.yaml")


def test_training_starts_with_the_quick_check(tmp_path, folder):
    (folder / "test" / "class 0" / "twin.png").write_bytes((folder / "train" / "class 0" / "01.png").read_bytes())
    done = quick(write_recipe(tmp_path / "run.yaml", folder), "scheduler.num_epochs=1")
    assert done.status == 0, done.stderr
    assert "note: 1 image in train and in test, such as" in done.stdout


@pytest.mark.parametrize(("num_bytes", "text"), [(7, "7 bytes"), (1234, "1.23 kB"), (5.6e9, "5.6 GB"), (2e12, "2 TB")])
def test_sizes_are_readable(num_bytes, text):
    assert duplicates.readable_size(num_bytes) == text
