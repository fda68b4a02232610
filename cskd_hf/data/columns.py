"""The two columns of a table: images, which stay encoded, and labels."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Image, Value, concatenate_datasets

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

_SPLITS = "train|test|e?val|dev"
# not device, value
_SPLIT_WORD = re.compile(
    f"({_SPLITS})(ing|ed|id|idat(e|ion)|uation|el|elopment|val|test|dev|data|images?|sets?|s)?", re.IGNORECASE
)
_OF_NAMES = r"(data_?)?(split|subset|set|partition|usage|phase|fold|mode)"  # whose values are names of splits
_YES_OR_NO = rf"is_?({_SPLITS})(ing|id|idation)?(_?(image|set|split))?"


def may_divide(column: str) -> bool:
    """Whether a column of this name may say which split a row is of: split, Usage, is_training_image."""
    return re.fullmatch(f"{_OF_NAMES}|{_YES_OR_NO}", column, re.IGNORECASE) is not None


def require_columns(table: Dataset, where: str, data: DataSection) -> None:
    """Check that `data.image_column` and `data.label_column` exist, and that no column divides the rows into splits.

    Args:
        where: what `table` is, for messages.

    Raises:
        UserError: one is missing, or the rows are of several splits.
    """
    for key, column in (("image_column", data.image_column), ("label_column", data.label_column)):
        if column not in table.column_names:
            names = ", ".join(table.column_names)
            raise UserError(f"data.{key}: {where} has no column {column!r}; it has {names}; write data.{key}=NAME")
    for column in [name for name in table.column_names if may_divide(name) and name != data.label_column]:
        values = [str(value) for value in table.unique(column) if value is not None]
        if re.fullmatch(_OF_NAMES, column, re.IGNORECASE):
            values = [value for value in values if any(map(_SPLIT_WORD.fullmatch, _words(value)))]
        if len(values) > 1:
            raise UserError(
                f"data: column {column!r} of {where} divides the rows into {', '.join(values)}, and would be ignored; "
                "write a file for each split, or remove the column"
            )


def _words(value: str) -> list[str]:
    return re.findall(r"[A-Z]*[a-z]+|[A-Z]+", value)  # PublicTest: Public, Test; but not interval: val


# How an image is named by an address, such as https://…, instead of a path.
_ADDRESS = r"^[A-Za-z][A-Za-z0-9+.-]+://"  # a scheme of two letters or more: C:// is a drive
_NOT_RELATIVE = rf"{_ADDRESS}|^/"


def images_only(table: Dataset, where: str, data: DataSection) -> Dataset:
    """One column, `image`, of `{"bytes", "path"}`.

    Raises:
        UserError: `data.image_column` holds no images.
    """
    column = data.image_column
    assert column is not None
    images = _encoded(table, column)
    if images is None:
        feature = table.features[column]
        raise UserError(f"data.image_column: {column!r} of {where} holds {feature}; name a column of images")
    paths = _paths(images, column)
    addresses = paths.filter(pc.match_substring_regex(paths, _ADDRESS))
    if len(addresses):
        raise UserError(
            f"data.image_column: {column!r} of {where} holds {len(addresses):,} addresses, such as {addresses[0]}; "
            "download the images and write their paths"
        )
    return images if column == "image" else images.rename_column(column, "image")


def join_paths(table: Dataset, folder: Path, data: DataSection) -> Dataset:
    """The table, its images' relative paths joined to its folder: opened, they would be of the working directory."""
    column = str(data.image_column)
    images = _encoded(table, column) if column in table.column_names else None
    if images is None:
        return table
    if pc.all(pc.match_substring_regex(_paths(images, column), _NOT_RELATIVE), min_count=0).as_py():
        return table
    chunks = [_joined(chunk, folder) for chunk in images.with_format("arrow")[:][column].chunks]
    # Without a fingerprint, datasets would copy the table to hash it.
    images = Dataset(pa.table({column: pa.chunked_array(chunks)}), fingerprint="joined")
    images = images.cast_column(column, Image(decode=False))
    joined = concatenate_datasets([table.with_format(None).remove_columns(column), images], axis=1)
    return joined.select_columns(table.column_names)


def _joined(images: pa.StructArray, folder: Path) -> pa.StructArray:
    content, path = images.field("bytes"), images.field("path")
    relative = pc.and_(pc.is_null(content), pc.invert(pc.match_substring_regex(path, _NOT_RELATIVE)))
    inside = pc.binary_join_element_wise(str(folder), path, "/")
    inside = pc.replace_substring_regex(inside, r"(^|/)(\./+)+", r"\1")  # as pathlib joins, also to folder .
    path = pc.if_else(pc.fill_null(relative, False), inside, path)
    return pa.StructArray.from_arrays([content, path], ["bytes", "path"])


def _encoded(table: Dataset, column: str) -> Dataset | None:
    """The column alone, of `{"bytes", "path"}`; None if it holds no images."""
    feature = table.features[column]
    # As written by other programs, which leave out what `datasets` says about the column.
    stored = isinstance(feature, Value) and _plain(feature.dtype) in ("string", "binary")
    struct = isinstance(feature, dict) and set(feature) in ({"bytes", "path"}, {"bytes"}, {"path"})
    if not (isinstance(feature, Image) or stored or struct):
        return None
    images = table.with_format(None).select_columns([column])  # a saved format may lack the column
    if stored and feature.dtype != _plain(feature.dtype):  # datasets cannot cast all of these to images
        images = images.cast_column(column, Value(_plain(feature.dtype)))
    return images.cast_column(column, Image(decode=False))


def _plain(dtype: str) -> str:
    """The type without Arrow's prefix and suffix: large_string and string_view become string."""
    return dtype.removeprefix("large_").removesuffix("_view")


def _paths(images: Dataset, column: str) -> pa.ChunkedArray:
    """Paths of the images that are not stored as bytes."""
    # In Arrow: 1.28 million paths take no second. [:] applies a select that the raw table knows nothing about.
    stored = images.with_format("arrow")[:][column]
    return pc.struct_field(stored, "path").filter(pc.is_null(pc.struct_field(stored, "bytes")))
