"""Read a person's own catalogue: a CSV table and the photos that it names.

Each column is an attribute, each value a class; `|` separates several classes in one cell. Splits and roles depend on
a hash of the photo's bytes, or of its group, so neither another name nor another order of rows moves a photo.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from m3lib.config import Csv
from m3lib.data.manifest import Source
from m3lib.prepare import contents
from m3lib.prepare.labels import Labels, label
from m3lib.prepare.photos import PhotoLoader
from m3lib.prepare.table import SPLITS, Table, open_table
from m3lib.taxonomy import one_line

GROUP = "group "  # how the keys of groups start; a hash never does


def read(settings: Csv, max_unreadable: float) -> Source:
    """Return the catalogue as a source; raises InputError that names the wrong line, column or setting."""
    table = open_table(settings, max_unreadable)
    return assemble(table, label(table, settings), contents.digests(table.path.parent, table.names), settings)


def assemble(table: Table, labels: Labels, digests: Sequence[str], settings: Csv) -> Source:
    """Return the source of a table and its labels; digests: a text per row that is equal for equal photos."""
    keys = split_keys(table.cells, digests, settings)
    splits = given_splits(table.cells, settings) if settings.split_column else ""
    frame = pd.DataFrame({"image": table.names, "split": splits, "role": "", "key": keys, "labels": labels.ids})
    frame, unlabelled_notes = set_apart(frame, labels.has_value)
    notes = (*table.notes, *labels.notes, *unlabelled_notes, *divided_groups(frame))
    return Source(labels.taxonomy, frame, PhotoLoader(table.path.parent, tuple(table.names)), notes)


def divided_groups(frame: pd.DataFrame) -> list[str]:
    """Return a note on the groups of csv.group_column that the splits of csv.split_column divide."""
    grouped = frame[(frame["split"] != "none") & frame["key"].str.startswith(GROUP)]
    splits = grouped.groupby("key")["split"].unique()
    divided = splits[splits.map(len) > 1]
    if not len(divided):
        return []
    example = f"{divided.index[0].removeprefix(GROUP)!r} ({', '.join(divided.iloc[0])})"
    counted = f"{len(divided)} of {len(splits)} groups of csv.group_column"
    return [f"{counted} lie in several splits of csv.split_column, which are kept as they are, such as {example}"]


def set_apart(frame: pd.DataFrame, has_value: np.ndarray) -> tuple[pd.DataFrame, list[str]]:
    """Give photos without a label the split none and their role, see `data.manifest`; also return a note on them."""
    empty = frame["labels"].map(len).to_numpy() == 0
    rare = empty & has_value
    frame = frame.assign(
        split=np.where(empty, "none", frame["split"]),
        role=np.select([rare, empty], ["rare", "unlabelled"], frame["role"]),
    )
    count, total = int(empty.sum()), len(frame)
    why = f"{count - rare.sum()} without any value, {rare.sum()} with rare classes only"
    note = (
        f"{total - count} of {total} photos are labelled; the other {count} ({why}) are not trained on or evaluated, "
    )
    return frame, [note + "but a search finds them"] if count else []


def split_keys(table: pd.DataFrame, digests: Sequence[str], settings: Csv) -> Sequence[str]:
    """Return what decides each row's split: its group, or the photo's bytes if it has none."""
    if not settings.group_column:
        return digests
    groups = table[one_line(settings.group_column)].map(one_line)
    return [GROUP + group if group else digest for group, digest in zip(groups, digests, strict=True)]


def given_splits(cells: pd.DataFrame, settings: Csv) -> np.ndarray:
    """Return the splits that csv.split_column gives; `open_table` has checked the words."""
    return cells[one_line(settings.split_column)].map(lambda cell: SPLITS[one_line(cell).lower()]).to_numpy()
