"""Turn the cells of a table into labels: the values of a column are its classes; rare ones are dropped or folded."""

from collections import Counter
from itertools import chain
from typing import NamedTuple

import numpy as np

from m3lib.config import Csv
from m3lib.errors import InputError
from m3lib.prepare.spelling import Values, listed, read_values, spelling_key
from m3lib.prepare.table import Table
from m3lib.taxonomy import Attribute, Taxonomy, one_line

OTHER = "other"  # the class that rare classes are folded into


class Labels(NamedTuple):
    """The labels of a table's rows.

    ids: each row's class ids in ascending order. has_value: (I,) bool, whether a row has a value, even of a class that
    was dropped. notes: sentences on what was merged, dropped or folded.
    """

    taxonomy: Taxonomy
    ids: list[list[int]]
    has_value: np.ndarray
    notes: list[str]


def label(table: Table, settings: Csv) -> Labels:
    """Return the labels of a table.

    Raises InputError if a listed attribute, or every one, has fewer than two classes of csv.min_images images.
    """
    path, notes = table.path, []
    values_of: dict[Attribute, Values] = {}
    has_value = np.zeros(len(table.cells), dtype=bool)
    for name in table.attributes:
        values, reading = read_values(table.cells[name], settings)
        notes += reading
        has_value |= np.array([bool(classes) for classes in values])
        multi = is_multi(name, values, table, settings)
        values, rare, other = without_rare(values, settings)
        classes = tuple(sorted(set().union(*values)))
        if len(classes) > 1:
            values_of[Attribute(name, classes, multi)] = values
            notes += [describe_rare(name, rare, other, settings)] if rare else []
            continue
        problem = f"fewer than two classes with {settings.min_images} or more images"
        if settings.attributes:
            advice = "lower csv.min_images, or " * bool(rare) + "leave the column out of csv.attributes"
            raise InputError(f"{path}, column {name!r}: {problem} (csv.min_images); {advice}")
        notes.append(f"column {name!r} is left out: {problem}")
    if not values_of:
        raise InputError(f"{path}: no column has two classes with {settings.min_images} or more images each")
    taxonomy = Taxonomy(tuple(values_of))
    columns = []
    for (attribute, values), start in zip(values_of.items(), taxonomy.offsets.tolist(), strict=False):
        ids = {class_: m for m, class_ in enumerate(attribute.classes, start)}
        columns.append([[ids[class_] for class_ in classes] for classes in values])  # both are sorted by name
    return Labels(taxonomy, [list(chain(*row)) for row in zip(*columns, strict=True)], has_value, notes)


def is_multi(name: str, values: Values, table: Table, settings: Csv) -> bool:
    """Return whether an attribute allows several classes per photo, by the settings or by the cells."""
    several = next((row for row, classes in enumerate(values) if len(classes) > 1), None)
    if several is None:
        return name in map(one_line, settings.multi)
    if name in map(one_line, settings.single):
        where = f"{table.path}, line {table.cells.index[several]}"
        raise InputError(f"{where}: {name!r} has {len(values[several])} values, but csv.single in params.yaml lists it")
    return True


def without_rare(values: Values, settings: Csv) -> tuple[Values, dict[str, int], str]:
    """Drop or fold classes with fewer than csv.min_images images; also return them with their number of images.

    Also return the class that they are folded into: OTHER, or a spelling of it that exists. It is dropped if it is
    rare too.
    """
    counts = Counter(chain.from_iterable(values))
    other = max((class_ for class_ in sorted(counts) if spelling_key(class_) == OTHER), key=counts.get, default=OTHER)
    rare = {class_: n for class_, n in counts.items() if n < settings.min_images}
    if settings.rare == "fold":
        values = [sorted({other if class_ in rare else class_ for class_ in classes}) for classes in values]
        counts = Counter(chain.from_iterable(values))
    return [[class_ for class_ in classes if counts[class_] >= settings.min_images] for classes in values], rare, other


def describe_rare(name: str, rare: dict[str, int], other: str, settings: Csv) -> str:
    """Describe the rare classes of an attribute in a note."""
    action = "dropped" if settings.rare == "drop" else f"folded into {other!r}"
    return f"{name}: classes with fewer than {settings.min_images} images are {action}: {listed(rare, Counter(rare))}"
