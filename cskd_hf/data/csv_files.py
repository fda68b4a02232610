"""CSV files that list images and labels; every cell is text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import ClassLabel, Dataset
from pyarrow import csv

from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

# UTF-32 first: its mark starts with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


def read_csv(root: Path, files: Sequence[str | Path], data: DataSection) -> Dataset:
    """The rows of CSV files: a column of image paths, absolute or relative to `root`, and one of labels.

    Raises:
        UserError: a file is not in UTF-8, nor in UTF-16 or UTF-32 with a byte order mark.
    """
    assert data.image_column is not None
    assert data.label_column is not None
    # Else 001 would become 1, and a class called NA, null or nan a missing label; an empty cell is one.
    text = dict.fromkeys((data.image_column, data.label_column), pa.string())
    options = csv.ConvertOptions(column_types=text, null_values=[""], strings_can_be_null=True)
    tables = []
    for file in files:
        table = csv.read_csv(io.BytesIO(_text(Path(file)).encode()), convert_options=options)
        if data.image_column in table.column_names:
            # An absolute path wins over the folder it is joined to.
            paths = [None if path is None else str(root / path) for path in table[data.image_column].to_pylist()]
            column = table.column_names.index(data.image_column)
            table = table.set_column(column, data.image_column, pa.array(paths, pa.string()))
        if set(text) <= set(table.column_names):  # else the error lists the columns
            table = table.select(list(text))
        tables.append(table)
    return Dataset(pa.concat_tables(tables, promote_options="default"))


def reject_changed_labels(files: Sequence[Path], loaded: Mapping[str, Dataset], data: DataSection) -> None:
    """Reject what `datasets` read from CSV files beside images if a label is not what the file says.

    Raises:
        UserError: such as for 001, which it takes for the number 1.
    """
    column = str(data.label_column)
    read = {str(name) for table in loaded.values() if column in table.column_names for name in table.unique(column)}
    features = [table.features[column] for table in loaded.values() if column in table.column_names]
    if all(isinstance(feature, ClassLabel) for feature in features):
        return
    for file in {path for folder in {file.parent for file in files} for path in folder.glob("metadata.csv")}:
        options = csv.ConvertOptions(column_types={column: pa.string()})
        table = csv.read_csv(io.BytesIO(_text(file).encode()), convert_options=options)
        written = table[column].unique().to_pylist() if column in table.column_names else []
        changed = [name for name in written if name not in read]
        if changed:
            raise UserError(
                f"data.label_column: {file} has the label {changed[0]!r}, which was read as a number, truth value "
                f"or missing value; write {data.dataset} as Parquet with labels of type string"
            )


def _text(file: Path) -> str:
    content = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    advice = "save it as UTF-8, in a spreadsheet as 'CSV UTF-8'"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"data.dataset: {file}, line {line}, is not {encoding.upper()} text; {advice}") from None
    if "\0" in text:
        raise UserError(f"data.dataset: {file} is not UTF-8 text: it has zero bytes; {advice}")
    return text
