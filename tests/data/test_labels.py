"""The names of classes: timm's order, one list for parts that store labels differently, names that look alike."""

from __future__ import annotations

import random

import numpy as np
import pytest
from timm.data.readers.reader_image_folder import find_images_and_targets

from cskd_hf.data.labels import StoredLabels, join_labels, look_alikes, renumber, timm_order
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
