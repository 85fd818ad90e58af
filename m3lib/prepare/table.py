"""Read the table of a person's own catalogue: text cells, the columns that are attributes, and the rows of use."""

import codecs
import csv
import io
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Csv, data_path
from m3lib.errors import InputError
from m3lib.prepare.pack import check_missing
from m3lib.prepare.photo_names import find_photos
from m3lib.taxonomy import nearest, one_line

DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}
EXCEL = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)  # a first line that names the delimiter
LINE_BREAK = re.compile(r"\r\n?|\n")
ROW_NUMBERS = "column 1"  # the name of a first column without one
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "val", "validation", "dev"), "valid")

Faults = dict[int, str]  # a sentence for each broken row, by its line


@dataclass(frozen=True)
class Table:
    """The rows of a table whose photo exists.

    cells: text, indexed by the line on which each row starts. names: (rows,) each row's photo, a path relative to the
    table's folder. notes: sentences on what was left out.
    """

    path: Path
    cells: pd.DataFrame
    names: np.ndarray
    attributes: list[str]
    notes: list[str]


def open_table(settings: Csv, max_unreadable: float) -> Table:
    """Read a table and find its photos, without opening them.

    Raises InputError for a wrong column or setting, or with every broken row if they are more than the share
    csv.max_broken, or if more than the share max_unreadable of the photos is missing.
    """
    path, column = data_path(settings.table), one_line(settings.image_column)
    cells, faults = read_cells(path, settings.delimiter, column)
    if column not in cells:
        columns = ", ".join(map(repr, cells))
        advice = f"with csv.delimiter = {settings.delimiter}, the columns are: {columns}"
        raise InputError(f"{path}: no column {column!r} (csv.image_column); {advice}")
    for setting in ("group_column", "split_column"):
        if getattr(settings, setting):
            find_column(cells, getattr(settings, setting), f"csv.{setting}", path)
    attributes, notes = choose_attributes(cells, settings)
    faults |= split_faults(cells, settings) | quote_faults(cells, one_line_columns(cells, attributes, settings), path)
    total = len({*cells.index, *faults})
    photos = find_photos(cells[column].drop(list(faults), errors="ignore"), path)
    notes += leave_out(path, total, faults | photos.faults, settings.max_broken)
    notes += check_missing(photos.missing, len(photos.names) + len(photos.missing), max_unreadable) + photos.notes
    names = np.array(list(photos.names.values()), dtype=object)
    return Table(path, cells.loc[list(photos.names)], names, attributes, notes)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file with commas into text cells, indexed by line; raises InputError with every broken row."""
    cells, faults = read_cells(path)
    if faults:
        raise InputError(str(path), *(faults[line] for line in sorted(faults)))
    return cells


def read_cells(path: Path, delimiter: str = "comma", column: str = "") -> tuple[pd.DataFrame, Faults]:
    """Read a CSV file into text cells, indexed by the line on which each row starts; also return the broken rows.

    delimiter: a key of DELIMITERS, or auto: the one in a `sep=` line, else the one that yields csv.image_column.
    Rows without text are skipped. Raises InputError if the file is no UTF-8 text or its header is wrong.
    """
    lines = list(io.StringIO(read_text(path), newline=""))
    symbol = DELIMITERS.get(delimiter)
    if lines and (named := EXCEL.fullmatch(lines[0])):
        lines[0], symbol = "\n", symbol or named[1]
    rows, faults = split_rows(lines, symbol or guess_delimiter(lines, column))
    if faults and min(faults) <= min(rows, default=len(lines)):
        raise InputError(f"{path}, {faults[min(faults)]}")
    if len(rows) + len(faults) < 2:
        raise InputError(f"{path}: the table is empty; it needs a line of column names, then one line per photo")
    columns = header(rows, path)
    width, first = len(columns), min(rows)
    for line, row in rows.items():
        if len(row) != width:
            what, breaks = f"{len(row)} values for the {width} columns of the header", sum(map(count_breaks, row))
            faults |= spanned(line, line + breaks, what) if breaks else {line: f"line {line}: {what}"}
    good = [line for line in rows if line not in faults and line != first]
    cells = pd.DataFrame([rows[line] for line in good], good, columns, dtype=object)
    return cells.loc[:, [name != "" for name in columns]], faults


def read_text(path: Path) -> str:
    """Return a file's text without its byte order mark, which may also be one of UTF-16.

    Raises InputError if it can't be read, is not UTF-8 text, or holds zero bytes.
    """
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        advice = "set csv.table in params.yaml"
        raise InputError(f"{path}: it can't be read ({error.strerror or error}); {advice}") from None
    encoding = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = len((data[: error.start].decode(encoding, "replace") + "-").splitlines())
        problem = f"not {encoding.upper()} text; save the table as CSV in UTF-8"
        raise InputError(f"{path}, line {line}: {problem}") from None
    if "\0" in text:
        raise InputError(f"{path}: not a text table, it holds zero bytes; save it as CSV in UTF-8")
    return text


def split_rows(lines: Sequence[str], delimiter: str) -> tuple[dict[int, list[str]], Faults]:
    """Return the cells of each row by the line on which it starts, and the lines with broken quotes.

    A quote that is not closed where it should be breaks its own line only: reading goes on at the next.
    """
    rows, faults, start = {}, {}, 0
    while start < len(lines):
        reader, line = parser(lines[start:], delimiter), start + 1
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    rows[line] = row
                line = start + reader.line_num + 1  # a quoted cell may span several lines
            break
        except csv.Error as error:
            faults[line] = f"line {line}: not valid CSV ({error}); check the quotes"
            start = line
    return rows, faults


def parser(lines: Sequence[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)


def guess_delimiter(lines: Sequence[str], column: str) -> str:
    """Return the delimiter that gives a column of this name, or else most columns; a comma if nothing decides."""

    def columns(delimiter: str) -> tuple[bool, int]:
        try:
            names = next((list(map(one_line, row)) for row in parser(lines, delimiter) if any(row)), [])
        except csv.Error:
            names = []
        return column in names, len(names)

    return max(DELIMITERS.values(), key=columns)


def count_breaks(cell: str) -> int:
    return len(LINE_BREAK.findall(cell))


def spanned(first: int, last: int, what: str) -> Faults:
    """Return a fault for each line of a quoted cell that spans several lines: it may hold rows."""
    inside = {line: f"line {line}: it lies inside the quotes of line {first}" for line in range(first + 1, last + 1)}
    return {first: f"line {first}: {what}; the quote on this line closes on line {last}"} | inside


def quote_faults(cells: pd.DataFrame, one_line_columns: set[str], path: Path) -> Faults:
    """Return a fault for each line of a cell with a line break, if its column allows none or the cell holds a row."""
    faults = {}
    with_break = cells.apply(lambda column: column.str.contains(LINE_BREAK)).any(axis=1)
    for line, row in cells[with_break].iterrows():
        first = line
        for name, cell in row.items():
            last, (_, *others) = first + count_breaks(cell), LINE_BREAK.split(cell.strip())
            if others and (name in one_line_columns or any(names_photo(text, path.parent) for text in others)):
                found = spanned(first, last, f"column {name!r} has a line break")
                faults |= found | {line: found[first]}
                break
            first = last
    return faults


def names_photo(text: str, folder: Path) -> bool:
    """Return whether a line of text is a row of a table whose photo exists."""
    parts = re.split(r'[,;|\t"]+', text)
    return len(parts) > 1 and any(os.path.isfile(folder / part.strip()) for part in parts)


def header(rows: dict[int, list[str]], path: Path) -> list[str]:
    """Return the names of the columns; '' for one without a name and without a value, as Excel leaves at the end.

    The first one may have values without a name: pandas writes its row numbers there. Raises InputError for another
    column without a name, for a name that swallowed a row (its quote is not closed), and for two columns of one name.
    """
    (first, names), *body = rows.items()
    columns = [one_line(name) for name in names]
    columns[0] = columns[0] or ROW_NUMBERS
    for i, name in enumerate(columns):
        if any(names_photo(text, path.parent) for text in LINE_BREAK.split(names[i].strip())[1:]):
            raise InputError(f"{path}, line {first}: the name of column {i + 1} holds a row; check its quotes")
        if not name and any(len(row) == len(columns) and row[i].strip() for _, row in body):
            raise InputError(f"{path}, line {first}: column {i + 1} has no name")
        if name and columns.count(name) > 1:
            raise InputError(f"{path}, line {first}: two columns have the name {name!r}")
    return columns


def leave_out(path: Path, total: int, faults: Faults, max_broken: float) -> list[str]:
    """Return a note on the broken rows, if any; raises InputError with all if their share exceeds max_broken."""
    if not faults:
        return []
    share, lines = len(faults) / total, sorted(faults)
    if share > max_broken or len(faults) == total:
        advice = f"mend the table, or set csv.max_broken in params.yaml to {round_up(share):g} to leave such rows out"
        sentences = [faults[line] for line in lines]
        raise InputError(str(path), *sentences, advice=advice if len(faults) < total else "")
    listed = ", ".join(map(str, lines[:30])) + (" ..." if len(lines) > 30 else "")
    counted = f"{len(faults)} of {total} rows are broken and left out (csv.max_broken)"
    return [f"{counted}: lines {listed}; {faults[lines[0]]}" if len(lines) > 1 else f"{counted}: {faults[lines[0]]}"]


def round_up(share: float) -> float:
    """Return the smallest number with one significant digit that is not below a share, in (0, 1]."""
    digits = max(1, -math.floor(math.log10(share)))
    return math.ceil(share * 10**digits) / 10**digits


def find_column(cells: pd.DataFrame, name: str, setting: str, path: Path) -> str:
    """Return the column that a setting names; raises InputError with similar names if there is none."""
    return nearest(one_line(name), list(cells), f"column in params.yaml, {setting}: {path} has no")


def other_columns(settings: Csv) -> dict[str, str]:
    """Return the columns that are no attributes, and the setting that names each."""
    names = ("image_column", "group_column", "split_column")
    return {one_line(getattr(settings, name)): f"csv.{name}" for name in names if getattr(settings, name)}


def choose_attributes(cells: pd.DataFrame, settings: Csv) -> tuple[list[str], list[str]]:
    """Return the columns listed in csv.attributes, or all columns that may be attributes, and notes on the others."""
    path, others = data_path(settings.table), other_columns(settings)
    listed = [find_column(cells, name, "csv.attributes", path) for name in settings.attributes]
    if twice := [name for name in listed if listed.count(name) > 1]:
        raise InputError(f"params.yaml, csv.attributes: {twice[0]!r} is listed twice")
    if clash := [name for name in listed if name in others]:
        raise InputError(f"params.yaml, csv.attributes: {clash[0]!r} is listed, but it is {others[clash[0]]}")
    free = [name for name in cells if name not in others]
    left_out = [] if listed else [name for name in free if name == ROW_NUMBERS or is_identifier(cells[name])]
    attributes = listed or [name for name in free if name not in left_out]
    for setting in ("multi", "single", "rename"):
        for name in getattr(settings, setting):
            column = find_column(cells, name, f"csv.{setting}", path)
            nearest(column, attributes, f"attribute in params.yaml, csv.{setting}:")
    both = {one_line(name) for name in settings.multi} & {one_line(name) for name in settings.single}
    if both:
        raise InputError(f"params.yaml, csv: {min(both)!r} is listed as multi and as single")
    why = "its values number or name the rows; if it is an attribute, list it in csv.attributes"
    return attributes, [f"column {name!r} is left out: {why}" for name in left_out]


def is_identifier(column: pd.Series) -> bool:
    """Return whether a column has several values, each of them once."""
    values = column.map(one_line)
    values = values[values != ""]
    return len(values) > 1 and values.is_unique


def one_line_columns(cells: pd.DataFrame, attributes: list[str], settings: Csv) -> set[str]:
    """Return the columns without line breaks: those of a setting, and others whose values make two classes."""
    classes = {name for name in attributes if (cells[name].value_counts() >= settings.min_images).sum() > 1}
    return {*other_columns(settings), *map(one_line, settings.attributes), *classes}


def split_faults(cells: pd.DataFrame, settings: Csv) -> Faults:
    """Return a fault for each row whose split is another word, if csv.split_column is set."""
    if not settings.split_column:
        return {}
    column = cells[one_line(settings.split_column)]
    expected = f"column {column.name!r} must be train, valid or test, got"
    wrong = column[~column.map(one_line).str.lower().isin(list(SPLITS))]
    return {line: f"line {line}: {expected} {cell.strip()!r}" for line, cell in wrong.items()}
