"""Files and splits that each have their own list of classes: every label keeps its name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Value
from small_sets import ABC, as_split_folders, level_of, load, png, table

from cskd_hf.data.splits import ImageSplit
from cskd_hf.errors import UserError

pytestmark = pytest.mark.usefixtures("own_cache")

CAB = ["cat", "ant", "bee"]
TEXT, NUMBER = Value("string"), Value("int64")
LEVEL = {"ant": 10, "bee": 20, "cat": 30, "dog": 40}


def part(names: Sequence[str] | None, *classes: str, metadata: bool = True) -> pa.Table:
    """A file of images whose grey level tells their class.

    Args:
        names: its list of classes; None: labels are text.
        metadata: with the `huggingface` key that holds the list; else only its integers.
    """
    label = TEXT if names is None else ClassLabel(names=list(names))
    images = [{"bytes": png(LEVEL[name]), "path": None} for name in classes]
    made = table(list(classes) if names is None else [names.index(name) for name in classes], label, images=images)
    stored = made.data.table
    return stored if metadata else stored.replace_schema_metadata(None)


def write(root: Path, suffix: str, **files: pa.Table) -> Path:
    root.mkdir()
    for name, content in files.items():
        file = root / f"{name.replace('_', '-')}.{suffix}"
        if suffix == "parquet":
            pq.write_table(content, file)
        else:
            with pa.ipc.new_stream(file, content.schema) as writer:
                writer.write_table(content)
    return root


def assert_right(split: ImageSplit, *classes: str) -> None:
    names = [split.class_names[label] for label in split.labels]
    assert names == list(classes)
    assert [level_of(split, index) for index in range(len(split))] == [LEVEL[name] for name in names]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("second", "test", "expected"),
    [
        (ABC.names, CAB, "ant bee cat"),  # another order
        (ABC.names, ["bee", "cat"], "ant bee cat"),  # a subset
        (["cat", "bee"], ABC.names, "ant bee cat"),  # a shard of train
        (None, ["bee", "cat"], "ant bee cat"),  # text beside lists
        (ABC.names, None, "ant bee cat"),
        (["dog", "bee", "cat"], CAB, "ant bee cat dog"),  # no list has every name
    ],
)
def test_each_files_labels_are_read_by_its_own_list(tmp_path, suffix, second, test, expected):
    files = {"train_1": part(ABC.names, "cat", "ant"), "train_2": part(second, "cat", "bee"), "test": part(test, "bee")}
    images = load(write(tmp_path / "d", suffix, **files))
    assert_right(images.train, "cat", "ant", "cat", "bee")
    assert_right(images.test, "bee")
    assert " ".join(images.train.class_names) == expected


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train_1": part(CAB, "ant"), "train_2": part(CAB, "bee", metadata=False), "test": part(CAB, "cat")},
            "names in split 'train', file train-1.parquet, integers in split 'train', file train-2.parquet",
        ),
        (
            {"train_1": part(CAB, "ant", metadata=False), "train_2": part(CAB, "bee"), "test": part(CAB, "cat")},
            "integers in split 'train', file train-1.parquet, names in",
        ),
        (
            {"train": part(CAB, "ant", "bee"), "test": part(CAB, "cat", metadata=False)},
            "names in split 'train', integers in split 'test'",
        ),
        (
            {"train": part(CAB, "ant", "bee"), "test": table([True], Value("bool")).data.table},
            "names in split 'train', booleans in split 'test'",
        ),
    ],
)
def test_integers_beside_names_are_an_error(tmp_path, files, message):
    with pytest.raises(UserError, match=f"'label' has different types: {message}") as caught:
        load(write(tmp_path / "d", "parquet", **files))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, r"file train-2\.parquet holds the label 3, .*only 3 classes"),
        (-1, "1 of 1 rows of .*no label"),
        (None, "1 of 1"),
    ],
)
def test_a_label_outside_its_files_list_is_an_error(tmp_path, label, message):
    wrong = part(CAB, "ant").set_column(1, "label", pa.array([label], pa.int64()))
    files = {"train_1": part(ABC.names, "ant", "bee"), "train_2": wrong, "test": part(ABC.names, "cat")}
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "d", "parquet", **files))


def describe(root: Path, *names: str) -> Path:
    listed = "\n".join(f"          '{number}': {name}" for number, name in enumerate(names))
    (root / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n"
        f"      class_label:\n        names:\n{listed}\n---\n"
    )
    return root


def test_the_readme_names_the_classes_of_files_without_a_list_and_gives_the_order(tmp_path):
    files = {"train_1": part(CAB, "bee"), "train_2": part(ABC.names, "cat", "ant"), "test": part(CAB, "bee", "cat")}
    files["train_3"] = part(CAB, "ant", "cat", metadata=False)
    images = load(describe(write(tmp_path / "d", "parquet", **files), *CAB))
    assert_right(images.train, "bee", "cat", "ant", "ant", "cat")
    assert_right(images.test, "bee", "cat")
    assert list(images.train.class_names) == CAB


def test_a_readme_may_rename_classes_but_not_drop_them(tmp_path):
    files = {"train": part(ABC.names, "ant", "cat"), "test": part(ABC.names, "bee", "cat")}
    renamed = load(describe(write(tmp_path / "a", "parquet", **files), "Formica", "bee", "cat"))
    assert renamed.train.class_names == ("Formica", "bee", "cat")
    assert renamed.train.labels.tolist() == [0, 2]
    other = describe(write(tmp_path / "b", "parquet", **files), "bee", "cat", "dog")
    with pytest.raises(UserError, match=r"train\.parquet lists classes that .*README\.md lacks: ant; correct one"):
        load(other)


def test_the_files_of_a_saved_split_may_have_their_own_lists(tmp_path):
    splits = {"train": table([0, 1], ABC), "test": table([1, 2], ABC)}
    root = as_split_folders(tmp_path / "d", **splits)
    file, other = root / "train" / "data-00001-of-00002.arrow", part(CAB, "cat", "bee", "ant")
    with pa.ipc.new_stream(file, other.schema) as writer:
        writer.write_table(other)
    state = json.loads((root / "train" / "state.json").read_text())
    state["_data_files"].append({"filename": file.name})
    (root / "train" / "state.json").write_text(json.dumps(state))
    images = load(root)
    assert images.train.class_names == ("ant", "bee", "cat")
    assert images.train.labels.tolist() == [0, 1, 2, 1, 0]
    assert level_of(images.train, 3) == LEVEL["bee"]


def test_files_may_store_the_other_columns_differently(tmp_path):
    """Programs other than `datasets` leave out its metadata, and columns that training ignores may differ."""
    plain = part(None, "cat", metadata=False)
    files = {"train_1": plain.append_column("note", [["x"]]), "train_2": part(CAB, "ant"), "test": part(None, "cat")}
    images = load(write(tmp_path / "d", "parquet", **files))
    assert_right(images.train, "cat", "ant")
    assert_right(images.test, "cat")


def stored(labels: list[Any], kind: pa.DataType) -> pa.Table:
    return pa.table({"image": [png(1)] * len(labels), "label": pa.array(labels, kind)})


@pytest.mark.parametrize(
    ("labels", "kind", "expected"),
    [
        (["001", "1", "10", "9"], pa.string(), ["001", "1", "9", "10"]),
        (["NA", "null", "nan", "None"], pa.large_string(), ["NA", "nan", "None", "null"]),
        (["b", "a"], pa.string_view(), ["a", "b"]),
        (["b", "a"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        (["é".encode(), b"a"], pa.binary(), ["a", "é"]),
        ([True, False], pa.bool_(), ["False", "True"]),
        ([10, 9], pa.uint8(), ["9", "10"]),
    ],
)
def test_labels_of_every_type_become_the_text_of_their_values(tmp_path, labels, kind, expected):
    files = {"train": stored(labels, kind), "test": stored(labels, kind)}
    images = load(write(tmp_path / "d", "parquet", **files))
    assert list(images.train.class_names) == expected
    texts = [label.decode() if isinstance(label, bytes) else str(label) for label in labels]
    assert [images.train.class_names[label] for label in images.train.labels] == texts


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([1.0, 2.0], pa.float64(), "text, integers or booleans"),
        ([0, 1], pa.date32(), "text, integers or booleans"),
        ([b"caf\xe9", b"a"], pa.binary(), "bytes that are not UTF-8 text"),
    ],
)
def test_labels_whose_text_is_unknown_are_an_error(tmp_path, labels, kind, message):
    files = {"train": stored(labels, kind), "test": stored(labels, kind)}
    with pytest.raises(UserError, match=f"'label' of split 'train' holds .*{message}"):
        load(write(tmp_path / "d", "parquet", **files))
