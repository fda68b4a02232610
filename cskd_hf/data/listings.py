"""Files that list images and labels: CSV with any delimiter, and metadata.csv, .jsonl or .parquet beside the images.

Not `datasets`' readers, which take the label 001 for the number 1, and NA for a missing label.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from pyarrow import csv

from cskd_hf.data.choose import Choose, is_split_word
from cskd_hf.data.columns import join_paths, may_divide
from cskd_hf.data.formats import readable_extensions
from cskd_hf.errors import UserError
from cskd_hf.recipe.sections import DataSection

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"  # `datasets`' column of image paths in a metadata file
_DELIMITERS = (",", ";", "\t", "|")
# UTF-32 first: its mark starts with UTF-16's.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    codecs.BOM_UTF8: "utf-8-sig",
}


class Listing(NamedTuple):
    """Rows of one split.

    Attributes:
        table: a column of image paths, absolute or relative to the folder as written, and one of labels.
        notes: on a guessed encoding, and on images in the folder that the file does not list.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()


def open_listings(
    root: Path, choose: Choose, data: DataSection
) -> tuple[dict[str, Dataset], dict[str, tuple[str, ...]]] | None:
    """The splits of a folder with `split/metadata.*`, `metadata.*`, `split.csv`, `split.tsv` or a single CSV.

    Returns:
        The chosen splits and notes on them; None if there is no such file.

    Raises:
        UserError: a file cannot be read as a table.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: (folder, file) for folder in folders if (file := _metadata(folder, data))}
    if not files and (file := _metadata(root, data)):
        parts = _divide(_read(file, data))
        listings = {name: (root, parts[name]) for name in choose(parts)}
    elif files := files or {file.stem: (root, file) for file in _tables(root, folders, data)}:
        listings = {name: (files[name][0], _read(files[name][1], data)) for name in choose(files)}
    else:
        return None
    tables = {name: _as_dataset([listing], folder, data) for name, (folder, listing) in listings.items()}
    return tables, {name: listing.notes for name, (_, listing) in listings.items()}


def read_csv(root: Path, files: Sequence[str], data: DataSection) -> Dataset:
    """The rows of several CSV files of one split, with image paths relative to `root`."""
    return _as_dataset([_read(Path(file), data) for file in files], root, data)


def _metadata(folder: Path, data: DataSection) -> Path | None:
    """The metadata file of a folder of images; None also if it has no labels where folders may be the classes."""
    file = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if file is None or sum(path.is_dir() for path in folder.iterdir()) < 2:
        return file
    return file if data.label_column in _parse(file, data).table.column_names else None


def _tables(root: Path, folders: Sequence[Path], data: DataSection) -> list[Path]:
    """The CSV and TSV files that are splits; none if they only lie beside class folders."""
    files = sorted(path for path in root.iterdir() if path.suffix.lower() in (".csv", ".tsv") and path.is_file())
    stems = {file.stem for file in files}
    if stems & {"train", "test", data.train_split, data.test_split, data.holdout}:
        return files
    if any(is_split_word(folder.name) for folder in folders):
        return []
    if any(map(is_split_word, stems)):
        return files
    if len(files) == 1:
        columns = _parse(files[0], data).table.column_names
        if data.label_column in columns and {data.image_column, FILE_NAME} & set(columns):
            return files
    return []


def _divide(listing: Listing) -> dict[str, Listing]:
    """Split → its rows, by the first folder of each path; a single one, `train`, unless such a folder is a split."""
    table = listing.table
    if FILE_NAME in table.column_names:
        paths = map(str, table[FILE_NAME].to_pylist())
        first = [path.replace("\\", "/").removeprefix("./").partition("/")[0] for path in paths]
        if any(map(is_split_word, first)):
            names = pa.array(first)
            return {name: Listing(table.filter(pc.equal(names, name)), listing.notes) for name in dict.fromkeys(first)}
    return {"train": listing}


def _as_dataset(listings: Sequence[Listing], folder: Path, data: DataSection) -> Dataset:
    """The columns that are needed, with absolute paths; every column if one is missing, for the error."""
    image, label = str(data.image_column), str(data.label_column)
    tables = []
    for table, _ in listings:
        names = table.column_names
        if image not in names and FILE_NAME in names:
            table = table.rename_columns([image if name == FILE_NAME else name for name in names])
        needed = [name for name in table.column_names if name in (image, label) or may_divide(name)]
        tables.append(table.select(needed) if {image, label} <= set(needed) else table)
    return join_paths(Dataset(pa.concat_tables(tables, promote_options="default")), folder, data)


def _read(file: Path, data: DataSection) -> Listing:
    """The file, with a note if it is a metadata file that does not list every image in its folder."""
    listing = _parse(file, data)
    if file.name not in METADATA or FILE_NAME not in listing.table.column_names:
        return listing
    real = functools.cache(os.path.realpath)  # folders have several names: ., a/../b, links
    paths = (os.path.split(os.path.join(file.parent, str(name))) for name in listing.table[FILE_NAME].to_pylist())
    folder = real(file.parent)
    unlisted = sorted(_image_files(folder) - {os.path.join(real(place), name) for place, name in paths})
    if not unlisted:
        return listing
    name, shown = os.path.relpath(unlisted[0], folder), os.path.basename(os.path.abspath(file.parent))
    note = f"left out {len(unlisted):,} images that {shown}/{file.name} does not list, such as {name}"
    return Listing(listing.table, (*listing.notes, note))


def _image_files(folder: str) -> set[str]:
    """Paths of the images below a folder, without hidden files and folders."""
    paths = (os.path.join(place, name) for place, _, names in os.walk(folder) for name in names)
    images = (path for path in paths if os.path.splitext(path)[1].lower() in readable_extensions())
    return {path for path in images if "/." not in path[len(folder) :]}


def _parse(file: Path, data: DataSection) -> Listing:
    if file.suffix == ".parquet":
        return Listing(pq.read_table(file))
    text, notes = _text(file)
    if file.suffix == ".jsonl":
        return Listing(_json_lines(file, text), notes)
    # Else 001 would become 1, and a class called NA, null or nan a missing label; an empty cell is one.
    columns = dict.fromkeys((str(data.image_column), FILE_NAME, str(data.label_column)), pa.string())
    options = csv.ConvertOptions(column_types=columns, null_values=[""], strings_can_be_null=True)
    delimiter = _delimiter(text.lstrip().partition("\n")[0], set(columns))
    parsing = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)  # else rejected beyond 1 MB
    return Listing(csv.read_csv(io.BytesIO(text.encode()), parse_options=parsing, convert_options=options), notes)


def _delimiter(header: str, wanted: set[str]) -> str:
    """The one that finds the most of the columns wanted, else the most columns."""

    def found(delimiter: str) -> tuple[int, int]:
        names = [name.strip('"\r') for name in header.split(delimiter)]
        return len(wanted & set(names)), len(names)

    return max(_DELIMITERS, key=found)


def _json_lines(file: Path, text: str) -> pa.Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"data.dataset: {file}, line {number}, is not a JSON object: {line[:60]!r}")
        rows += [row] if row else []
    names = list(dict.fromkeys(name for row in rows for name in row))
    # Bounding boxes and other nested values are dropped.
    columns = {name: [row.get(name) for row in rows] for name in names}
    flat = {name: values for name, values in columns.items() if not any(isinstance(v, list | dict) for v in values)}
    try:
        return pa.table(flat)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(f"data.dataset: {file}: a column has values of several types: {error}") from None


def _text(file: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a file, and a remark if its encoding was guessed."""
    content = file.read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    advice = "save it as UTF-8, in a spreadsheet as 'CSV UTF-8'"
    notes: tuple[str, ...] = ()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        try:  # what spreadsheets in the West write
            text = content.decode("cp1252" if encoding == "utf-8" else encoding)
        except UnicodeDecodeError:
            raise UserError(f"data.dataset: {file}, line {line}, is not {encoding.upper()} text; {advice}") from None
        word = re.search(r"[^,;\t|\r\n\"]*[^\x00-\x7f][^,;\t|\r\n\"]*", text)
        example = word[0].strip() if word else ""
        notes = (
            f"{file.name}, line {line}, is not UTF-8; read as Windows-1252: {example!r}; if it is wrong, {advice}",
        )
    if "\0" in text:
        raise UserError(f"data.dataset: {file} is not UTF-8 text: it has zero bytes; {advice}")
    return text, notes
