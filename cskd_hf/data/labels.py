"""Labels of several splits or files, each stored its own way, as numbers of one list of classes.

Classes are matched by name, and a name is text: `001` and `1` are two classes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from cskd_hf.errors import UserError

MAX_CLASSES = 1_000_000  # [ours]
BY_NUMBER = "write data.labels=index if the integers number the classes from 0"


class StoredLabels(NamedTuple):
    """The label column of a split or of some of its files.

    Attributes:
        where: what the column belongs to, for messages.
        kind: "names" or "integers", "booleans", which name no class.
        numbers: (N,) indices into `names`.
        names: the classes.
        listed: the data lists its classes, in this order.
    """

    where: str
    kind: str
    numbers: np.ndarray
    names: tuple[str, ...]
    listed: bool


def timm_order(names: Iterable[str]) -> list[str]:
    """Distinct names as timm numbers class folders: 1, 2, 10; a, B, c.

    timm gives no fixed order to names that it takes as equal, such as 1 and 01; here they are in the order of their
    characters.

    Example:
        >>> timm_order(["img12", "Img2", "img1"])
        ['img1', 'Img2', 'img12']
    """
    return sorted(set(names), key=lambda name: (_timm_key(name), name))


def _timm_key(name: str) -> list[Any]:
    """As timm's `natural_key`, whose import takes seconds and which fails on ²."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name.lower())]


def look_alikes(names: Iterable[str]) -> list[str]:
    """Sets of class names that are probably one class, a line each.

    Example:
        >>> print(look_alikes(["cat", "Cat ", "dog"])[0])
        classes 'cat' and 'Cat ' differ only in case, blanks, Unicode form or leading zeros; merge them if they are one
    """
    alike: dict[str, list[str]] = {}
    for name in timm_order(names):
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
        alike.setdefault(repr(_timm_key(" ".join(key.split()))), []).append(name)
    pairs = [" and ".join(map(_visible, of_one)) for of_one in alike.values() if len(of_one) > 1]
    difference = "differ only in case, blanks, Unicode form or leading zeros; merge them if they are one"
    lines = [f"classes {pair} {difference}" for pair in pairs[:5]]
    return lines + [f"so do {len(pairs) - 5:,} more pairs of classes"] * (len(pairs) > 5)


def _visible(name: str) -> str:
    """The name in quotes, with its code points if it has more than ASCII: two forms of é print alike."""
    return repr(name) if name.isascii() else f"{name!r} ({ascii(name)[1:-1]})"


def stored_labels(table: Dataset, column: str, where: str, names: Sequence[str] | None = None) -> StoredLabels:
    """Read a label column; no image is decoded.

    Args:
        where: what `table` is, for messages.
        names: the classes that its integers mean; None: as its features say.

    Raises:
        UserError: a row without label or with one outside the list, or a column of another type.
    """
    feature = table.features[column]
    if names is None and isinstance(feature, ClassLabel):
        names = feature.names
    if len(table) == 0:
        raise UserError(f"data: {where} is empty; choose another split")
    # Arrow format decodes no image, and [:] applies a select or shuffle that the raw table knows nothing about.
    values = table.select_columns([column]).with_format("arrow")[:][column]
    kind = label_kind(values.type) if isinstance(feature, (ClassLabel, Value)) else None
    if kind is None:
        raise UserError(
            f"data.label_column: {column!r} of {where} holds {feature}; name a column of class labels: "
            "text, integers or booleans"
        )
    num_unlabelled = values.null_count
    if pa.types.is_signed_integer(values.type):
        num_unlabelled += pc.sum(pc.less(values, 0), min_count=0).as_py()
    if num_unlabelled:
        rows = f"{num_unlabelled} of {len(values)} rows of {where}"
        raise UserError(f"data: {rows} have no label; label or delete them, or choose another split")
    if names is not None and kind == "integers":
        highest = pc.max(values).as_py()
        if highest >= len(names):
            raise UserError(
                f"data.label_column: {column!r} of {where} holds the label {highest}, but its list has "
                f"only {len(names)} classes, 0 to {len(names) - 1}; correct the labels"
            )
        return StoredLabels(where, "names", values.to_numpy(), tuple(names), listed=True)
    if kind == "names":
        try:
            values = values.cast(pa.large_string())
        except pa.ArrowInvalid:
            raise UserError(
                f"data.label_column: {column!r} of {where} holds bytes that are not UTF-8 text; convert them to text"
            ) from None
    distinct = values.unique()  # in Arrow: NumPy would make a Python object of every name
    numbers = pc.index_in(values, value_set=distinct).to_numpy()
    return StoredLabels(where, kind, numbers, tuple(map(str, distinct.to_pylist())), listed=False)


def label_kind(stored: pa.DataType) -> str | None:
    """The `StoredLabels.kind` of a column of this type without a list of names; None: no class labels."""
    if pa.types.is_dictionary(stored):
        return label_kind(stored.value_type)
    if "string" in str(stored) or "binary" in str(stored):
        return "names"
    if pa.types.is_integer(stored):
        return "integers"
    return "booleans" if pa.types.is_boolean(stored) else None


def join_labels(parts: Sequence[StoredLabels], column: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Number the labels of all parts by one list of classes.

    The list is the first one that contains every other's names; if there is none, all names in timm's order.

    Returns:
        (N,) int64 labels for each part, and the names.

    Raises:
        UserError: integers beside names, which cannot be matched.
    """
    first = parts[0]
    other = next((part for part in parts if part.kind != first.kind), None)
    if other is not None:
        by_number = f", or {BY_NUMBER}" if {first.kind, other.kind} == {"names", "integers"} else ""
        raise UserError(
            f"data.label_column: {column!r} has different types: {first.kind} in {first.where}, {other.kind} in "
            f"{other.where}, which cannot be matched; convert one of them{by_number}"
        )
    every = {name for part in parts for name in part.names}
    complete = next((part.names for part in parts if part.listed and set(part.names) == every), None)
    names = complete or tuple(timm_order(every))
    return [renumber(part, names)[0] for part in parts], names


def by_index(parts: Sequence[StoredLabels], names: Sequence[str] | None = None) -> list[StoredLabels]:
    """Labels under `data.labels: index`: integers, also those spelled as text, number the classes from 0.

    Args:
        names: the classes; None: those of the parts that name theirs, or else the integers up to the greatest.

    Raises:
        UserError: a number without a class, or a part without numbers or whose names contradict them.
    """
    numbers = [  # of each class; None where some names are words
        list(map(int, part.names)) if all(name.isascii() and name.isdecimal() for name in part.names) else None
        for part in parts
    ]
    if names is not None:
        return [_indexed(part, own, names) for part, own in zip(parts, numbers, strict=True)]
    named = [part for part, own in zip(parts, numbers, strict=True) if own is None]
    greatest = max((number for own in numbers for number in own or ()), default=0)
    if not named and greatest >= MAX_CLASSES:
        raise UserError(f"data.labels: index, but {parts[0].where} has the label {greatest:,}; leave data.labels out")
    names = join_labels(named, "")[1] if named else tuple(map(str, range(greatest + 1)))
    return [part if own is None else _indexed(part, own, names) for part, own in zip(parts, numbers, strict=True)]


def _indexed(part: StoredLabels, numbers: list[int] | None, names: Sequence[str]) -> StoredLabels:
    if numbers is None:  # a list of classes numbers them, too
        number_of = {name: number for number, name in enumerate(names)}
        moved = [name for number, name in enumerate(part.names) if number_of.get(name, number) != number]
        if not part.listed or len(part.names) != len(names) or moved:
            reason = f"lists {moved[0]!r} at another place" if moved else f"names its classes: {some(part.names)}"
            raise UserError(f"data.labels: index, but {part.where} {reason}; leave data.labels out")
        numbers = list(range(len(names)))
    if len(set(numbers)) < len(numbers):
        raise UserError(f"data.labels: index, but {part.where} spells a number in two ways: {some(part.names)}")
    if max(numbers) >= len(names):
        raise UserError(
            f"data.labels: index, but {part.where} has the label {max(numbers)}, and there are only {len(names)} "
            f"classes, 0 to {len(names) - 1}; correct the labels"
        )
    return StoredLabels(part.where, "names", np.array(numbers, np.int64)[part.numbers], tuple(names), listed=True)


def renumber(part: StoredLabels, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers of another list: (N,) int64, −1 where it lacks the class, and the classes it lacks."""
    number_of = {name: number for number, name in enumerate(names)}
    labels = np.array([number_of.get(name, -1) for name in part.names], dtype=np.int64)[part.numbers]
    return labels, [part.names[number] for number in np.unique(part.numbers[labels < 0])]


def some(names: Sequence[Any]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(map(str, names[:5])) + (f", … ({len(names) - 5} more)" if len(names) > 5 else "")
