"""Read the table of a person's own catalogue: its text cells, the columns that are attributes, the photos it names."""

import codecs
import csv
import io
import posixpath
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Csv, data_path
from m3lib.errors import InputError
from m3lib.taxonomy import nearest, one_line


def open_table(settings: Csv) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Return the table, each row's photo (a path relative to the table's folder), and the attribute columns.

    Raises InputError for any wrong line, column or setting; does not look at the photos.
    """
    path = data_path(settings.table)
    table, image_column = read_table(path), one_line(settings.image_column)
    if image_column not in table:
        columns = ", ".join(map(repr, table))
        raise InputError(f"{path}: no column {image_column!r} (csv.image_column); separated by commas are: {columns}")
    for setting in ("group_column", "split_column"):
        if getattr(settings, setting):
            find_column(table, getattr(settings, setting), f"csv.{setting}", path)
    return table, photo_names(table[image_column], path), choose_attributes(table, settings)


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV file into text cells, indexed by the line on which each row starts; blank lines are skipped.

    Raises InputError naming the line if the file is not UTF-8, is badly quoted, or has rows of different lengths.
    """
    line, rows = 1, {}
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        reader = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
        for row in reader:
            if row:
                rows[line] = row
            line = reader.line_num + 1  # a quoted cell may span several lines
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b"-").splitlines())
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(
            f"{path}: it can't be read ({error.strerror or error}); set csv.table in params.yaml"
        ) from None
    except csv.Error as error:
        raise InputError(f"{path}, line {line}: not valid CSV ({error}); check the quotes") from None
    if b"\0" in data:
        raise InputError(f"{path}: not a text table, it holds zero bytes; save it as CSV in UTF-8")
    if len(rows) < 2:
        raise InputError(f"{path}: the table is empty; it needs a line of column names, then one line per photo")
    (first, header), *cells = rows.items()
    columns = [one_line(name) for name in header]
    if "" in columns:
        raise InputError(f"{path}, line {first}: column {columns.index('') + 1} has no name")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise InputError(f"{path}, line {first}: two columns have the name {twice[0]!r}")
    for line, row in cells:
        if len(row) != len(columns):
            raise InputError(f"{path}, line {line}: {len(row)} values for the {len(columns)} columns of the header")
    return pd.DataFrame([row for _, row in cells], [line for line, _ in cells], columns, dtype=object)


def find_column(table: pd.DataFrame, name: str, setting: str, path: Path) -> str:
    """Return the column that a setting names; raises InputError with similar names if there is none."""
    return nearest(one_line(name), list(table), f"column in params.yaml, {setting}: {path} has no")


def choose_attributes(table: pd.DataFrame, settings: Csv) -> list[str]:
    """Return the columns listed in csv.attributes, or all columns without another meaning."""
    path = data_path(settings.table)
    others = {one_line(name) for name in (settings.image_column, settings.group_column, settings.split_column)}
    listed = [find_column(table, name, "csv.attributes", path) for name in settings.attributes]
    attributes = listed or [name for name in table if name not in others]
    for setting, names in [("csv.multi", settings.multi), ("csv.single", settings.single)]:
        for name in names:
            nearest(find_column(table, name, setting, path), attributes, f"attribute in params.yaml, {setting}:")
    both = {one_line(name) for name in settings.multi} & {one_line(name) for name in settings.single}
    if both:
        raise InputError(f"params.yaml, csv: {min(both)!r} is listed as multi and as single")
    return attributes


def photo_names(column: pd.Series, path: Path) -> np.ndarray:
    """Return each row's photo as a normalised path relative to the table's folder; links in it are followed.

    Raises InputError for an empty cell, a photo outside the folder, or a photo that another row names.
    """
    lines: dict[str, int] = {}
    for line, cell in column.items():
        name = posixpath.normpath(cell.strip())
        if not cell.strip():
            raise InputError(f"{path}, line {line}: column {column.name!r} is empty; it must name a photo")
        if name.startswith("/") or name.split("/")[0] == "..":
            raise InputError(f"{path}, line {line}: {cell!r} lies outside the table's folder; move the photo into it")
        if name in lines:
            raise InputError(f"{path}, line {line}: the photo {name!r} is already on line {lines[name]}")
        lines[name] = line
    return np.array(list(lines), dtype=object)
