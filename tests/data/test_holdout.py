"""The held-out share: stratified, the same at every call, and taken out of what is trained on."""

from __future__ import annotations

import numpy as np
import pytest
from small_sets import ABC, as_parquet, level_of, load, png, table

from cskd_hf.data.splits import held_out
from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_a_held_out_share_is_stratified_and_leaves_every_class_an_image(share):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(40), generator.integers(1, 60, 40)))
    held = held_out(labels, share)
    assert held.dtype == bool
    for label in range(40):
        own = labels == label
        assert (own & ~held).any()
        assert abs((own & held).sum() - share * own.sum()) <= 0.5 + (own.sum() == 1)
        if own.sum() == 1:
            assert not held[own].any()


def test_even_a_large_share_leaves_every_class_an_image():
    assert held_out(np.arange(9) // 3, 0.95).reshape(3, 3).sum(1).tolist() == [2, 2, 2]


def test_a_held_out_share_is_the_same_at_each_call_and_left_to_no_seed():
    labels = np.arange(400) % 10
    np.random.seed(1)
    first = held_out(labels, 0.1)
    np.random.seed(2)
    assert (held_out(labels, 0.1) == first).all()
    assert np.bincount(labels[first]).tolist() == [4] * 10
    # Nor is it the first or last images of each class, which are often of one kind.
    assert not first[:40].all()
    assert 20 < np.flatnonzero(first).mean() < 380


def test_which_images_are_held_out_is_known_beforehand_and_frozen():
    """A new NumPy that shuffled otherwise would move images into the training set of a resumed run."""
    assert np.flatnonzero(held_out(np.arange(30) % 3, 0.2)).tolist() == [2, 13, 24, 26, 27, 28]


def test_a_share_of_the_training_split_is_taken_out_of_it(tmp_path):
    labels = [0, 1] * 10 + [2]
    rows = [{"bytes": png(level), "path": None} for level in range(21)]
    root = as_parquet(tmp_path / "d", train=table(labels, ABC, images=rows), test=table([0, 1], ABC))
    found = load(root, holdout=0.2)
    assert found.holdout is not None
    assert sorted([*found.train.rows, *found.holdout.rows]) == list(range(21))
    assert np.bincount(found.holdout.labels).tolist() == [2, 2]
    assert np.bincount(found.train.labels).tolist() == [8, 8, 1]
    assert found.holdout.name == "train"
    for split in (found.train, found.holdout):
        assert [level_of(split, index) for index in range(len(split))] == split.rows.tolist()
        assert [labels[row] for row in split.rows] == split.labels.tolist()
        assert split.describe(1) == f"split 'train', row {split.rows[1]}"
    again = load(root, holdout=0.2)
    assert again.holdout.rows.tolist() == found.holdout.rows.tolist()


def test_a_split_of_its_own_may_be_held_out(tmp_path):
    splits = {name: table([0, 1] * (1 + number), ABC) for number, name in enumerate(("train", "test", "dev"))}
    found = load(as_parquet(tmp_path / "d", **splits), holdout="dev")
    assert (len(found.train), len(found.test), len(found.holdout)) == (2, 4, 6)
    assert found.holdout.name == "dev"


def test_a_holdout_split_that_is_not_there_is_named(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"no split 'dev'; it has .*data\.holdout"):
        load(root, holdout="dev")


def test_a_share_that_holds_out_nothing_is_an_error_and_0_is_none(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.holdout: 0\.1 of 2 images holds none out"):
        load(root, holdout=0.1)
    assert load(root, holdout=0.0).holdout is None
    assert load(root, holdout=None).holdout is None
