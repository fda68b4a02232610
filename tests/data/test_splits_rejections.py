"""Rejected tables: one line that names the split, column or label."""

from __future__ import annotations

import pytest
from datasets import DatasetDict, Sequence, Value
from small_sets import ABC, LAYOUTS, as_parquet, as_split_folders, load, table, write

from cskd_hf.data.sources import OpenedSplits
from cskd_hf.data.splits import load_images
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_label_outside_the_class_list_is_named(tmp_path):
    train = table([0, 1, 7], Value("int64"))
    train.info.features["label"] = ABC  # possible in Parquet files written elsewhere
    with pytest.raises(UserError, match=r"split 'train'.*7.*3 classes"):
        load(as_split_folders(tmp_path / "d", train=train, test=table([0, 1], ABC)))


@pytest.mark.parametrize(
    "keys",
    [
        {"test_split": "train"},
        {"holdout": "train"},
        {"holdout": "test"},
        {"train_split": "test"},
        {"test_split": "validation", "holdout": "val"},
    ],
)
def test_a_split_named_twice_is_an_error(keys):
    with pytest.raises(UserError, match=r"data: .* names a split twice"):
        load("anywhere", **keys)


@pytest.mark.parametrize("save", LAYOUTS)
def test_a_missing_split_lists_the_existing_ones(tmp_path, save):
    root = save(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"'dev'.* (train, test|test, train)") as caught:
        load(root, test_split="dev")
    assert "test_split" in str(caught.value)


def test_a_missing_column_names_its_key_and_the_existing_columns(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(
        UserError,
        match=r"data\.image_column: split 'train' has no column 'img'; it has image, label; write data.image_column=",
    ):
        load(root, image_column="img")
    with pytest.raises(UserError, match=r"data\.label_column: split 'train' has no column 'fine'; it has image, label"):
        load(root, label_column="fine")


def test_a_recipe_that_is_not_resolved_is_rejected():
    with pytest.raises(UserError, match=r"data\.label_column: read null; .* load_images\(resolve\(recipe\)\.data\)"):
        load_images(DataSection(dataset="digits", train_split="train", test_split="test"))


def test_a_column_missing_in_one_split_names_the_split(tmp_path):
    root = as_split_folders(
        tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC).rename_column("label", "labels")
    )
    with pytest.raises(UserError, match=r"split 'test' has no column 'label'; it has image, labels"):
        load(root)


def test_labels_must_be_one_class_per_image(tmp_path):
    lists = table([[0], [1]], Sequence(Value("int64")))
    root = as_parquet(tmp_path / "d", train=lists, test=lists)
    with pytest.raises(
        UserError,
        match=r"'label' of split 'train' holds .*; name a column of class labels: text, integers or booleans$",
    ):
        load(root)


def test_an_image_column_of_another_type_is_named(tmp_path):
    root = as_parquet(tmp_path / "d", train=table([0, 1], ABC), test=table([0, 1], ABC))
    with pytest.raises(UserError, match=r"'label' of split 'train' holds .*; name a column of images$"):
        load(root, image_column="label")


@pytest.mark.parametrize(
    ("labels", "column", "count"),
    [
        ([-1, -1, -1], ABC, "3 of 3"),
        ([0, -1, 1], ABC, "1 of 3"),
        ([0, None, None], ABC, "2 of 3"),
        ([0, -1, 1], Value("int64"), "1 of 3"),
        (["a", None, "b"], Value("string"), "1 of 3"),
        ([None, None], Value("int32"), "2 of 2"),
    ],
)
def test_unlabelled_rows_are_counted(tmp_path, labels, column, count):
    train = table([0, 1] if column != Value("string") else ["a", "b"], column)
    root = as_parquet(tmp_path / "d", train=train, test=table(labels, column))
    with pytest.raises(
        UserError, match=f"{count} rows of split 'test' have no label; label or delete them, or choose another split"
    ):
        load(root)


@pytest.mark.parametrize("save", [as_parquet, as_split_folders])
def test_an_empty_table_is_a_one_line_error(tmp_path, save):
    with pytest.raises(UserError, match=r"data(\.dataset: .*/d|: split 'test' is empty)") as caught:
        load(save(tmp_path / "d", train=table([0, 1], ABC), test=table([], ABC)))
    assert len(str(caught.value).splitlines()) == 1


def test_an_empty_selection_is_an_error(monkeypatch):
    loaded = DatasetDict(train=table([0, 1], ABC), test=table([0, 1], ABC).select([]))
    monkeypatch.setattr(
        "cskd_hf.data.splits.open_splits", lambda data: OpenedSplits(loaded, {name: name for name in loaded}, {})
    )
    with pytest.raises(UserError, match="split 'test' is empty"):
        load("anything")


def test_broken_parquet_is_a_one_line_error(tmp_path):
    write(tmp_path, "data/train.parquet", "data/test.parquet")
    with pytest.raises(UserError, match=r"data\.dataset: ") as caught:
        load(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
