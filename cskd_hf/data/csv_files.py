"""CSV files that list images and labels; every cell is text."""

from __future__ import annotations

import codecs
import io
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset
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
