"""Which splits are read, and what messages propose."""

from __future__ import annotations

import numpy as np
import pytest
from small_sets import ABC, as_parquet, load, section, table, write

from cskd_hf.data.choose import choose_splits
from cskd_hf.data.splits import load_split
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(
    ("available", "keys", "expected"),
    [
        *[(["train", name], {}, ["train", name]) for name in ("test", "val", "valid", "validation", "Val", "testing")],
        (["Test", "Train"], {}, ["Train", "Test"]),
        (["train", "val", "test"], {}, ["train", "test"]),
        (["train", "validation", "test"], {"holdout": "val"}, ["train", "test", "validation"]),
        (["train", "val", "test"], {"holdout": "test"}, ["train", "val", "test"]),
        (["train", "validation"], {"test_split": "val"}, ["train", "validation"]),
        (["a", "b"], {"test_split": "b"}, ["a", "b"]),
        (["all"], {"test_split": 0.2}, ["all"]),
        (["train", "val"], {"test_split": 0.2, "holdout": "val"}, ["train", "val"]),
        (["train", "classes", "val"], {}, ["train", "val"]),
    ],
)
def test_a_split_is_found_by_its_name(available, keys, expected):
    assert list(choose_splits(DataSection(dataset="birds", **keys), available).values()) == expected


@pytest.mark.parametrize(
    ("available", "keys", "message"),
    [
        (["train"], {}, "test_split: not set, and my birds has one split; write data.test_split=0.2"),
        (
            ["train", "val", "validation"],
            {},
            "test_split: not set, .* of which val and validation fit; write data.test_split=val",
        ),
        (["train", "a b"], {}, "test_split: not set, .* none of which clearly fits; write data.test_split=0.2"),
        (["train", "val"], {"holdout": "val"}, "test_split: not set, .* write data.test_split=0.2"),
        (["a b", "c"], {}, "train_split: not set, .* none of which clearly fits; write 'data.train_split=a b'"),
        (
            ["train", "val"],
            {"test_split": "test"},
            " my birds has no split 'test'; it has train, val; write data.test_split=val",
        ),
        (["train"], {"test_split": "test"}, " my birds has no split 'test'; it has train; write data.test_split=0.2"),
        (
            ["x", "val"],
            {"train_split": "train"},
            " my birds has no split 'train'; it has x, val; write data.train_split=x",
        ),
        (
            ["train", "test"],
            {"holdout": "dev"},
            " my birds has no split 'dev'; it has train, test; write data.holdout=0.1",
        ),
        ([], {"train_split": "a"}, " my birds has no split 'a'; it has none; write data.train_split=NAME"),
    ],
)
def test_another_split_is_proposed_as_text_to_paste(available, keys, message):
    with pytest.raises(UserError, match=f"^data[.:]{message}$") as caught:
        choose_splits(DataSection(dataset="my birds", **keys), available)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("folder", ["", "train/"])
def test_a_share_of_one_folder_is_tested_on(tmp_path, folder):
    sizes = {"ant": 10, "bee": 21, "train": 4}
    write(tmp_path, *(f"{folder}{name}/{number}.jpg" for name, size in sizes.items() for number in range(size)))
    images = load(tmp_path, train_split=None, test_split=0.2, holdout=0.25)
    assert (images.train.name, images.test.name, images.holdout.name) == ("train",) * 3
    assert np.bincount(images.test.labels).tolist() == [2, 4, 1]  # of 2, 4.2 and 0.8
    assert np.bincount(images.holdout.labels).tolist() == [2, 4, 1]  # a quarter of the other 8, 17 and 3
    files = [
        image["path"] for part in (images.train, images.holdout, images.test) for image in part.fetch(range(len(part)))
    ]
    assert len(files) == len(set(files)) == 35
    alone = load_split(section(tmp_path, test_split=0.2), images.train.class_names)
    assert alone.rows.tolist() == images.test.rows.tolist()
    assert alone.labels.tolist() == images.test.labels.tolist()


def test_the_test_share_does_not_depend_on_the_hold_out_set(tmp_path):
    rows = table([0, 1] * 10 + [2], ABC)
    root = as_parquet(tmp_path / "d", train=rows, val=table([2, 1, 0], ABC))
    shares = [load(root, test_split=0.2, holdout=holdout).test.rows.tolist() for holdout in (0.0, 0.2, "val")]
    assert shares == [shares[0]] * 3


def test_a_share_of_no_image_is_an_error(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"data\.test_split: 0\.2 of 2 images is no image; write more"):
        load(root, test_split=0.2)
