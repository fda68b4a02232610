"""The two columns of a table: images, which stay encoded, and labels."""

from __future__ import annotations

from datasets import Dataset, Image, Value

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection


def require_columns(table: Dataset, where: str, data: DataSection) -> None:
    """Check that `data.image_column` and `data.label_column` exist.

    Args:
        where: what `table` is, for messages.

    Raises:
        UserError: one is missing.
    """
    for key, column in (("image_column", data.image_column), ("label_column", data.label_column)):
        if column not in table.column_names:
            raise UserError(f"data.{key}: {where} has no column {column!r}; it has {', '.join(table.column_names)}")


def images_only(table: Dataset, where: str, data: DataSection) -> Dataset:
    """One column, `image`, of `{"bytes", "path"}`.

    Raises:
        UserError: `data.image_column` holds no images.
    """
    column = data.image_column
    assert column is not None
    feature = table.features[column]
    stored = isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    # As written by other programs, which leave out what `datasets` says about the column.
    struct = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
    if not (isinstance(feature, Image) or stored or struct):
        raise UserError(f"data.image_column: {column!r} of {where} holds {feature}; name a column of images")
    images = table.select_columns([column])
    if stored and feature.dtype.startswith("large_"):  # older versions of datasets cannot cast these to images
        images = images.cast_column(column, Value(feature.dtype.removeprefix("large_")))
    images = images.cast_column(column, Image(decode=False))
    return images if column == "image" else images.rename_column(column, "image")
