"""The names of classes: timm's order, one list for parts that store labels differently, names that look alike."""

from __future__ import annotations

import random

import numpy as np
import pytest
from small_sets import ABC, as_parquet, section, table, write
from timm.data.readers.reader_image_folder import find_images_and_targets

from cskd_hf.data.labels import StoredLabels, by_index, join_labels, look_alikes, renumber, timm_order
from cskd_hf.data.splits import load_images, load_split
from cskd_hf.errors import UserError


def part(names: str, listed: bool = True, kind: str = "names") -> StoredLabels:
    own = tuple(names.split())
    return StoredLabels(f"file {names}", kind, np.arange(len(own)), own, listed)


def test_classes_are_in_the_order_in_which_timm_numbers_folders(tmp_path):
    names = ["1", "2", "10", "12", "a10b2", "A9b", "b", "C", "_x", "-5", "3.14", "Ünder", "zebra 2", "zebra 11", "７"]
    random.Random(0).shuffle(names)
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    _, number_of = find_images_and_targets(str(tmp_path))
    assert timm_order(names) == sorted(number_of, key=number_of.__getitem__)
    assert timm_order(["10", "²", "9", "9"]) == ["9", "10", "²"]  # timm cannot read a class called ²


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([part("b c"), part("b c")], "b c"),
        ([part("c a b"), part("a b"), part("b")], "c a b"),
        ([part("b"), part("c b a")], "c b a"),
        ([part("c a"), part("b a")], "a b c"),
        ([part("10 9"), part("9 1")], "1 9 10"),
        ([part("c b a"), part("a c", listed=False)], "c b a"),
        ([part("c b", listed=False), part("a", listed=False)], "a b c"),
        ([part("10 9", listed=False, kind="integers"), part("1", listed=False, kind="integers")], "1 9 10"),
    ],
)
def test_the_first_list_that_has_every_name_gives_the_order_else_timm(parts, expected):
    labels, names = join_labels(parts, "label")
    assert names == tuple(expected.split())
    for own, joined in zip(parts, labels, strict=True):
        assert [names[label] for label in joined] == list(own.names)


INTEGERS = {"listed": False, "kind": "integers"}


@pytest.mark.parametrize(
    ("parts", "classes", "expected"),
    [
        ([part("2 0", **INTEGERS)], "cat dog eel", ["eel cat"]),
        ([part("2 0", listed=False)], "cat dog eel", ["eel cat"]),  # a CSV
        ([part("0 2", listed=True)], "cat dog eel", ["cat eel"]),  # class folders
        ([part("tom rex")], "cat dog", ["cat dog"]),
        ([part("dog cat"), part("1 0", **INTEGERS)], None, ["dog cat", "cat dog"]),
        ([part("b a", listed=False), part("1", listed=False)], None, ["b a", "b"]),
        ([part("3 0", **INTEGERS), part("1", **INTEGERS)], None, ["3 0", "1"]),
    ],
)
def test_under_labels_index_integers_number_the_classes(parts, classes, expected):
    indexed = by_index(parts, classes and classes.split())
    assert [" ".join(own.names[number] for number in own.numbers) for own in indexed] == expected
    labels, names = join_labels(indexed, "label")
    assert [" ".join(names[label] for label in own) for own in labels] == expected


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (part("0 3", **INTEGERS), "has the label 3, and there are only 3 classes, 0 to 2; correct the labels"),
        (part("1 01", listed=False), "spells a number in two ways: 1, 01"),
        (part("tom rex", listed=False), "names its classes: tom, rex; leave data.labels out"),
        (part("tom rex"), "names its classes: tom, rex; leave data.labels out"),  # two of three
        (part("eel dog cat"), "lists 'eel' at another place; leave data.labels out"),
        (part("False True", listed=False, kind="booleans"), "names its classes: False, True; leave data.labels out"),
    ],
)
def test_labels_that_do_not_number_the_classes_are_rejected_under_labels_index(own, reason):
    with pytest.raises(UserError) as caught:
        by_index([own], ("cat", "dog", "eel"))
    assert str(caught.value) == f"data.labels: index, but {own.where} {reason}"


def test_a_label_that_numbers_no_class_is_rejected():
    with pytest.raises(UserError, match=r"has the label 20,231,105,123; leave data\.labels out"):
        by_index([part("20231105123 1", **INTEGERS)])


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("layout", ["integers", "class folders", "csv"])
def test_integers_in_the_data_are_evaluated_against_named_weights_only_under_labels_index(tmp_path, layout):
    if layout == "integers":
        as_parquet(tmp_path / "d", test=table([2, 0, 2]))
    else:
        write(tmp_path / "d", "test/2/1.png", "test/0/1.png", "test/2/2.png")
    if layout == "csv":
        (tmp_path / "d" / "test.csv").write_text("image,label\n" + "".join(f"test/{n}/1.png,{n}\n" for n in (2, 0)))
    with pytest.raises(UserError, match=r"not trained on: .*, or write data\.labels=index if the integers"):
        load_split(section(tmp_path / "d"), ("cat", "dog", "eel"))
    split = load_split(section(tmp_path / "d", labels="index"), ("cat", "dog", "eel"))
    expected = {"integers": [2, 0, 2], "class folders": [0, 2, 2], "csv": [2, 0]}[layout]
    assert (split.labels.tolist(), split.class_names) == (expected, ("cat", "dog", "eel"))


@pytest.mark.usefixtures("own_cache")
def test_integers_with_gaps_and_nameless_weights_need_labels_index(tmp_path):
    data = section(as_parquet(tmp_path / "d", train=table([0, 1, 2], ABC), test=table([2, 0])))
    with pytest.raises(UserError, match=r"the labels of split 'test', 0, 2, have gaps; write data\.labels=index"):
        load_split(data, None)
    by_number = data.model_copy(update={"labels": "index"})
    assert load_split(by_number, None).labels.tolist() == [2, 0]
    with pytest.raises(UserError, match=r"cannot be matched; convert one of them, or write data\.labels=index"):
        load_images(data)
    images = load_images(by_number)
    assert (images.test.labels.tolist(), images.train.class_names) == ([2, 0], ("ant", "bee", "cat"))


@pytest.mark.parametrize("kind", ["integers", "booleans"])
def test_integers_and_booleans_are_not_matched_with_names(kind):
    with pytest.raises(UserError, match=rf"'label' has different types: names in file a b, {kind} in file 0 1, .*conv"):
        join_labels([part("a b"), part("0 1", listed=False, kind=kind)], "label")


def test_a_class_that_another_list_lacks_is_minus_one():
    labels, unknown = renumber(part("a b c"), ("c", "a"))
    assert labels.tolist() == [1, -1, 0]
    assert unknown == ["b"]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["cat", "dog", "001", "2"], []),
        (["cat", "Cat"], ["'Cat' and 'cat'"]),
        (["cat", "cat ", "dog"], ["'cat' and 'cat '"]),
        (["caf\u00e9", "cafe\u0301"], [r"(cafe\u0301) and", r"(caf\xe9)"]),
        (["stra\u00dfe", "STRASSE"], ["'STRASSE' and"]),
        (["1", "001", "01", "2"], ["'001' and '01' and '1'"]),
        (["a  b", "a b", "A", "a"], ["'A' and 'a'", "'a  b' and 'a b'"]),
    ],
)
def test_names_that_look_alike_are_named_together(names, pairs):
    lines = look_alikes(names)
    assert len(lines) == sum(" and" in pair for pair in pairs)
    assert all(any(pair in line for line in lines) for pair in pairs)


def test_at_most_five_pairs_are_named():
    lines = look_alikes([f"{case}{number}" for case in "aA" for number in range(8)])
    assert len(lines) == 6
    assert lines[-1] == "so do 3 more pairs of classes"
