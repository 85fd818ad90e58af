"""Read a person's own catalogue: a CSV table and the photos that it names.

Each column is an attribute, each value a class; `|` separates several classes in one cell. Splits and roles depend on
a hash of the photo's bytes, or of its group, so neither another name nor another order of rows moves a photo.
"""

import codecs
import csv
import hashlib
import io
import posixpath
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Csv, Split, data_path
from m3lib.data.manifest import Source, assign_roles, assign_splits
from m3lib.errors import InputError
from m3lib.prepare.pack import check_missing
from m3lib.prepare.photos import PhotoLoader
from m3lib.taxonomy import Attribute, Taxonomy, nearest, one_line

OTHER = "other"  # the class that rare classes are folded into
LISTED = 8  # rare classes named in a note
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "val", "validation", "dev"), "valid")

Values = list[list[str]]  # of one attribute: the classes of each row, none if unknown


def read(settings: Csv, split: Split, max_unreadable: float) -> Source:
    """Return the catalogue as a source; raises InputError that names the wrong line, column or setting."""
    path = data_path(settings.table)
    table, names, attributes = open_table(settings)
    contents = np.array([content_key(path.parent / name) for name in names], dtype=object)
    exists = contents != ""
    missing = [
        f"{name!r} ({path}, line {line})" for line, name in zip(table.index[~exists], names[~exists], strict=True)
    ]
    notes = check_missing(missing, len(table), max_unreadable)
    table, names, contents = table[exists], names[exists], contents[exists]

    taxonomy, labels, label_notes = label(table, attributes, settings)
    keys = split_keys(table, contents, settings)
    splits = given_splits(table, settings) if settings.split_column else assign_splits(keys, split)
    roles = assign_roles(keys, splits, split.query)
    frame = pd.DataFrame({"image": names, "split": splits, "role": roles, "labels": labels})
    labelled = frame[frame["labels"].map(len) > 0].reset_index(drop=True)
    if unknown := len(frame) - len(labelled):
        label_notes.append(f"{unknown} of {len(frame)} photos have no known label and are left out")
    load = PhotoLoader(path.parent, tuple(labelled["image"]))
    return Source(taxonomy, labelled, load, (*notes, *label_notes))


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


def content_key(path: Path) -> str:
    """Return a hash of a photo's bytes; empty if it can't be read or is no regular file."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
    except (OSError, ValueError):  # ValueError: no file system accepts the name
        pass
    return ""


def split_keys(table: pd.DataFrame, contents: Sequence[str], settings: Csv) -> Sequence[str]:
    """Return what decides each row's split: its group, or the photo's bytes if it has none."""
    if not settings.group_column:
        return contents
    groups = table[one_line(settings.group_column)].map(one_line)
    return [f"group {group}" if group else content for group, content in zip(groups, contents, strict=True)]


def given_splits(table: pd.DataFrame, settings: Csv) -> np.ndarray:
    """Return the splits that csv.split_column gives; raises InputError for another word."""
    column = table[one_line(settings.split_column)].str.strip()
    for line, cell in column.items():
        if cell.lower() not in SPLITS:
            where = f"{data_path(settings.table)}, line {line}"
            raise InputError(f"{where}: column {column.name!r} must be train, valid or test, got {cell!r}")
    return np.array([SPLITS[cell.lower()] for cell in column])


def label(table: pd.DataFrame, attributes: list[str], settings: Csv) -> tuple[Taxonomy, list[list[int]], list[str]]:
    """Return the taxonomy, each row's class ids in ascending order, and notes on what was dropped or folded.

    Raises InputError if a listed attribute, or every one, has fewer than two classes of csv.min_images images.
    """
    path, notes = data_path(settings.table), []
    values_of: dict[Attribute, Values] = {}
    for name in attributes:
        values = [sorted({one_line(value) for value in cell.split("|")} - {""}) for cell in table[name]]
        multi = is_multi(name, values, table, settings)
        values, rare = without_rare(values, settings)
        classes = tuple(sorted(set().union(*values)))
        if len(classes) > 1:
            values_of[Attribute(name, classes, multi)] = values
            notes += [describe_rare(name, rare, settings)] if rare else []
            continue
        problem = f"fewer than two classes with {settings.min_images} or more images"
        if settings.attributes:
            advice = "lower csv.min_images or leave the column out"
            raise InputError(f"{path}, column {name!r}: {problem}; {advice}")
        notes.append(f"column {name!r} is left out: {problem}")
    if not values_of:
        raise InputError(f"{path}: no column has two classes with {settings.min_images} or more images each")
    taxonomy = Taxonomy(tuple(values_of))
    columns = []
    for (attribute, values), start in zip(values_of.items(), taxonomy.offsets.tolist(), strict=False):
        ids = {class_: m for m, class_ in enumerate(attribute.classes, start)}
        columns.append([[ids[class_] for class_ in classes] for classes in values])  # both are sorted by name
    return taxonomy, [list(chain(*row)) for row in zip(*columns, strict=True)], notes


def is_multi(name: str, values: Values, table: pd.DataFrame, settings: Csv) -> bool:
    """Return whether an attribute allows several classes per photo, by the settings or by the cells."""
    several = next((row for row, classes in enumerate(values) if len(classes) > 1), None)
    if several is None:
        return name in map(one_line, settings.multi)
    if name in map(one_line, settings.single):
        where = f"{data_path(settings.table)}, line {table.index[several]}"
        raise InputError(f"{where}: {name!r} has {len(values[several])} values, but csv.single in params.yaml lists it")
    return True


def without_rare(values: Values, settings: Csv) -> tuple[Values, dict[str, int]]:
    """Drop or fold classes with fewer than csv.min_images images; also return them with their number of images.

    `other`, the class they are folded into, is dropped if it is rare too.
    """
    counts = Counter(chain.from_iterable(values))
    rare = {class_: n for class_, n in counts.items() if n < settings.min_images}
    if settings.rare == "fold":
        values = [sorted({OTHER if class_ in rare else class_ for class_ in classes}) for classes in values]
        counts = Counter(chain.from_iterable(values))
    return [[class_ for class_ in classes if counts[class_] >= settings.min_images] for classes in values], rare


def describe_rare(name: str, rare: dict[str, int], settings: Csv) -> str:
    """Describe the rare classes of an attribute in a note."""
    by_count = sorted(rare.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{class_!r} ({count})" for class_, count in by_count[:LISTED]]
    if len(rare) > LISTED:
        named.append(f"and {len(rare) - LISTED} more")
    action = "dropped" if settings.rare == "drop" else f"folded into {OTHER!r}"
    return f"{name}: classes with fewer than {settings.min_images} images are {action}: {', '.join(named)}"
