"""A person's own CSV table: read with its line numbers kept, its columns turned into attributes and classes."""

import codecs
import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from m3lib.config import Csv
from m3lib.errors import InputError
from m3lib.taxonomy import Attribute, Taxonomy, nearest, one_line

OTHER = "other"
SHOWN = 8  # classes that a note names

Values = list[list[str]]  # of one attribute, for each row: the classes it carries, none where unknown


@dataclass(frozen=True)
class Table:
    """Cells as they stand in the file; lines: where each row starts, as an editor counts."""

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        n = self.columns.index(name)
        return [row[n] for row in self.rows]

    def where(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}"

    def keep(self, rows: Sequence[int]) -> "Table":
        return replace(self, rows=[self.rows[i] for i in rows], lines=[self.lines[i] for i in rows])


def clean(text: str) -> str:
    """On one line, trimmed, and in one Unicode form, so that what looks equal is equal."""
    return one_line(text)


def split_values(cell: str) -> list[str]:
    """The values between `|` in a cell, sorted, each once."""
    return sorted({clean(value) for value in cell.split("|")} - {""})


def read_table(path: Path) -> Table:
    """Read a CSV file; raises InputError naming the line when it is no UTF-8, ragged, badly quoted, or empty."""
    lines, rows = [], []
    for line, row in numbered_rows(path, read_text(path)):
        lines.append(line)
        rows.append(row)
    if len(rows) < 2:
        raise InputError(f"{path}: the table is empty; it needs a line of column names, then a line per photo")
    columns = tuple(clean(name) for name in rows[0])
    check_header(columns, f"{path}, line {lines[0]}")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(columns):
            raise InputError(f"{path}, line {line}: {len(row)} values for the {len(columns)} columns of the header")
    return Table(path, columns, rows[1:], lines[1:])


def read_text(path: Path) -> str:
    try:
        data = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        text = data.decode()
    except UnicodeDecodeError as error:
        line = len((data[: error.start] + b"-").splitlines())
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the table as CSV in UTF-8") from None
    except OSError as error:
        problem = error.strerror or error
        raise InputError(f"{path}: the table can't be read ({problem}); set csv.table in params.yaml") from None
    if "\0" in text:
        raise InputError(f"{path}: not a text table, it holds zero bytes; save it as CSV in UTF-8")
    return text


def numbered_rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    """Each row that isn't blank, with the line on which it starts: a quoted cell may span several."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found, start = [], 1
    try:
        for row in reader:
            if row:
                found.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(f"{path}, line {start}: not valid CSV ({error}); check the quotes") from None
    return found


def check_header(columns: tuple[str, ...], where: str) -> None:
    if "" in columns:
        raise InputError(f"{where}: column {columns.index('') + 1} has no name")
    twice = [name for name, count in Counter(columns).items() if count > 1]
    if twice:
        raise InputError(f"{where}: two columns have the name {twice[0]!r}")


def find_column(table: Table, name: str, setting: str) -> str:
    """The column that a setting names; raises InputError with the names that exist."""
    if not isinstance(name, str):
        raise InputError(f"params.yaml, {setting}: expected names of columns, got {name!r}; put it in quotes")
    return nearest(clean(name), table.columns, f"column in params.yaml, {setting}: {table.path} has no")


def choose_attributes(table: Table, settings: Csv) -> list[str]:
    """The columns to ask about: those listed, or every one that isn't named otherwise."""
    taken = {clean(name) for name in (settings.image_column, settings.group_column, settings.split_column)}
    listed = [find_column(table, name, "csv.attributes") for name in settings.attributes]
    chosen = listed or [name for name in table.columns if name not in taken]
    for setting, names in [("csv.multi", settings.multi), ("csv.single", settings.single)]:
        for name in names:
            nearest(find_column(table, name, setting), chosen, f"attribute in params.yaml, {setting}:")
    both = {clean(name) for name in settings.multi} & {clean(name) for name in settings.single}
    if both:
        raise InputError(f"params.yaml, csv: {min(both)!r} is listed as multi and as single")
    return chosen


def label(table: Table, settings: Csv) -> tuple[Taxonomy, list[list[int]], tuple[str, ...]]:
    """The taxonomy of the chosen columns, each row's class ids, rising, and notes on what was dropped or folded.

    Raises InputError when a listed attribute has fewer than two classes of csv.min_images images, or none has.
    """
    attributes, columns, notes = [], [], []
    for name in choose_attributes(table, settings):
        values = [split_values(cell) for cell in table.column(name)]
        multi = is_multi(name, values, table, settings)
        values, rare = without_rare(values, settings)
        classes = tuple(sorted(set().union(*values)))
        if len(classes) < 2:
            notes.append(left_out(name, table, settings))
            continue
        if rare:
            notes.append(describe_rare(name, rare, settings))
        attributes.append(Attribute(name, classes, multi))
        columns.append(values)
    if not attributes:
        raise InputError(f"{table.path}: no column has two classes with {settings.min_images} or more images each")
    taxonomy = Taxonomy(tuple(attributes))
    return taxonomy, class_ids(taxonomy, columns), tuple(notes)


def class_ids(taxonomy: Taxonomy, columns: list[Values]) -> list[list[int]]:
    ids: list[list[int]] = [[] for _ in columns[0]]
    for attribute, offset, values in zip(taxonomy.attributes, taxonomy.offsets, columns, strict=False):
        number = {class_: int(offset) + n for n, class_ in enumerate(attribute.classes)}
        for row, carried in zip(ids, values, strict=True):
            row.extend(number[class_] for class_ in carried)  # both are sorted by name
    return ids


def is_multi(name: str, values: Values, table: Table, settings: Csv) -> bool:
    """Whether an attribute allows several classes per photo: as set, or as seen in the table."""
    several = next((row for row, carried in enumerate(values) if len(carried) > 1), None)
    if several is None:
        return name in map(clean, settings.multi)
    if name in map(clean, settings.single):
        raise InputError(
            f"{table.where(several)}: {name!r} has {len(values[several])} values, but csv.single in params.yaml "
            "lists it"
        )
    return True


def count_images(values: Values) -> Counter[str]:
    return Counter(class_ for carried in values for class_ in carried)


def without_rare(values: Values, settings: Csv) -> tuple[Values, dict[str, int]]:
    """The values without rare classes, dropped or folded, and those classes' images; `other` may be rare itself."""
    rare = {class_: n for class_, n in count_images(values).items() if n < settings.min_images}
    if settings.rare == "fold":
        values = [sorted({OTHER if class_ in rare else class_ for class_ in carried}) for carried in values]
    frequent = {class_ for class_, n in count_images(values).items() if n >= settings.min_images}
    return [[class_ for class_ in carried if class_ in frequent] for carried in values], rare


def describe_rare(name: str, rare: Mapping[str, int], settings: Csv) -> str:
    ordered = sorted(rare.items(), key=lambda item: (-item[1], item[0]))
    named = [f"{class_!r} ({count})" for class_, count in ordered[:SHOWN]]
    if len(ordered) > SHOWN:
        named.append(f"and {len(ordered) - SHOWN} more")
    done = "dropped" if settings.rare == "drop" else f"folded into {OTHER!r}"
    return f"{name}: classes with fewer than {settings.min_images} images are {done}: {', '.join(named)}"


def left_out(name: str, table: Table, settings: Csv) -> str:
    """The note on an attribute without two classes; raises InputError when a person had listed it."""
    problem = f"fewer than two classes with {settings.min_images} or more images"
    if settings.attributes:
        raise InputError(f"{table.path}, column {name!r}: {problem}; lower csv.min_images or leave the column out")
    return f"column {name!r} is left out: {problem}"
