"""The hold-out share: stratified, reproducible, and removed from the training split."""

from __future__ import annotations

import numpy as np
import pytest
from small_sets import ABC, as_parquet, level_of, load, png, table

from cskd_hf.data.draws import rank_in_class
from cskd_hf.data.splits import holdout_mask
from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("share", [0.1, 0.2, 0.25, 0.5])
def test_the_share_is_stratified_and_leaves_every_class_a_training_image(share):
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(40), generator.integers(1, 60, 40)))
    mask = holdout_mask(labels, share)
    assert mask.dtype == bool
    for label in range(40):
        own = labels == label
        assert (own & ~mask).any()
        assert abs((own & mask).sum() - share * own.sum()) < 1
        if own.sum() == 1:
            assert not mask[own].any()
    assert mask.sum() == round(share * len(labels))


@pytest.mark.parametrize(
    ("sizes", "share", "held_out", "classes"),
    [
        ([5] * 100, 0.1, 50, 50),
        ([5] * 95 + [100] * 5, 0.1, 98, 53),  # 10 of each large class, and 48 of 95
        ([1] * 50 + [2] * 10, 0.1, 7, 7),  # classes of one image keep it
        ([1] * 50 + [3] * 2, 0.5, 4, 2),  # no more to take
        ([29, 30] * 100, 0.1, 590, 200),
        ([3] * 3, 0.95, 6, 3),  # even a large share leaves a training image
    ],
)
def test_the_total_is_the_share_where_classes_are_small(sizes, share, held_out, classes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    mask = holdout_mask(labels, share)
    count = np.bincount(labels[mask], minlength=len(sizes))
    assert (count.sum(), (count > 0).sum()) == (held_out, classes)
    assert (count < np.array(sizes)).all()


def test_chance_not_the_order_of_the_names_decides_between_equal_classes():
    held_out = np.flatnonzero(
        np.bincount(np.repeat(np.arange(100), 5)[holdout_mask(np.repeat(np.arange(100), 5), 0.1)])
    )
    assert len(held_out) == 50
    assert 20 < (held_out < 50).sum() < 30


def test_rank_in_class_counts_the_earlier_rows_of_the_class():
    labels = np.array([1, 0, 1, 3, 0, 1])
    assert rank_in_class(labels).tolist() == [0, 0, 1, 0, 1, 2]
    assert rank_in_class(labels, np.array([5, 4, 3, 2, 1, 0])).tolist() == [2, 1, 1, 0, 0, 0]


def test_the_share_depends_on_no_seed():
    labels = np.arange(400) % 10
    np.random.seed(1)
    first = holdout_mask(labels, 0.1)
    np.random.seed(2)
    assert (holdout_mask(labels, 0.1) == first).all()
    assert np.bincount(labels[first]).tolist() == [4] * 10
    # Nor is it the first or last images of each class, which are often alike.
    assert not first[:40].all()
    assert 20 < np.flatnonzero(first).mean() < 380


def test_the_share_is_frozen():
    """A NumPy that shuffled differently would move hold-out images into the training set of a resumed run."""
    assert np.flatnonzero(holdout_mask(np.arange(30) % 3, 0.2)).tolist() == [2, 13, 24, 26, 27, 28]


def test_the_share_is_removed_from_the_training_split(tmp_path):
    labels = [0, 1] * 10 + [2]
    rows = [{"bytes": png(level), "path": None} for level in range(21)]
    root = as_parquet(tmp_path / "d", train=table(labels, ABC, images=rows), test=table([0, 1], ABC))
    images = load(root, holdout=0.2)
    assert images.holdout is not None
    assert sorted([*images.train.rows, *images.holdout.rows]) == list(range(21))
    assert np.bincount(images.holdout.labels).tolist() == [2, 2]
    assert np.bincount(images.train.labels).tolist() == [8, 8, 1]
    assert images.holdout.name == "train"
    for split in (images.train, images.holdout):
        assert [level_of(split, index) for index in range(len(split))] == split.rows.tolist()
        assert [labels[row] for row in split.rows] == split.labels.tolist()
        assert split.describe(1) == f"split 'train', row {split.rows[1]}"
    assert images.notes == (
        "1 of 3 classes have one training image, paired with itself: cat",
        "1 of 3 classes have no hold-out image: cat",
    )
    again = load(root, holdout=0.2)
    assert again.holdout.rows.tolist() == images.holdout.rows.tolist()


def test_a_share_of_no_image_is_an_error_and_0_is_no_hold_out_set(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.holdout: 0\.1 of 2 images is no image"):
        load(root, holdout=0.1)
    assert load(root, holdout=0.0).holdout is None
    assert load(root, holdout=None).holdout is None
