"""Readers, each turning one source of photos into a manifest."""

import hashlib
import posixpath
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.config import Csv, Settings, Split, data_path
from m3lib.data.manifest import Source, assign_roles, assign_splits, check_source
from m3lib.errors import InputError
from m3lib.prepare import catalogue, darn, deepfashion, fashionai, pack, photos, public
from m3lib.prepare.catalogue import Table

SPLITS = {
    "train": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "dev": "valid",
    "test": "test",
}


def read(settings: Settings) -> Source:
    """The chosen source, checked: there is something to train on, to ask, and to answer with, or InputError."""
    source = READERS[settings.source](settings)
    check_source(source)
    return source


def read_csv(settings: Csv, split: Split, max_bad: float) -> Source:
    """A person's own catalogue: a CSV table and its photos.

    Splits and roles hang on a hash of the photo's bytes, or of its group, so neither a new name nor a new order of
    rows moves a photo. Raises InputError naming the line, column or setting that is wrong.
    """
    table, names = open_catalogue(settings)
    catalogue.choose_attributes(table, settings)  # so that a wrong name is told before the photos are read
    contents = [content_hash(table.path.parent / name) for name in names]
    missing = [row for row, content in enumerate(contents) if not content]
    notes = check_missing(table, names, missing, max_bad)
    there = [row for row, content in enumerate(contents) if content]
    table, names, contents = table.keep(there), [names[i] for i in there], [contents[i] for i in there]

    taxonomy, labels, label_notes = catalogue.label(table, settings)
    keys = split_keys(table, contents, settings)
    splits = own_splits(table, settings) if settings.split_column else assign_splits(keys, split)
    roles = assign_roles(keys, splits, split.query)
    frame = pd.DataFrame({"image": names, "split": splits, "role": roles, "labels": labels})
    frame, unlabelled = labelled(frame)
    return Source(
        taxonomy, frame, photos.PhotoLoader(table.path.parent, tuple(frame["image"])), notes + label_notes + unlabelled
    )


def open_catalogue(settings: Csv) -> tuple[Table, list[str]]:
    """The table and each row's photo, a path relative to the table's folder; every named column is there."""
    table = catalogue.read_table(data_path(settings.table))
    image_column = catalogue.clean(settings.image_column)
    if image_column not in table.columns:
        known = ", ".join(map(repr, table.columns))
        raise InputError(
            f"{table.path}: no column {image_column!r} (csv.image_column); separated by commas are: {known}"
        )
    for setting in ("group_column", "split_column"):
        if getattr(settings, setting):
            catalogue.find_column(table, getattr(settings, setting), f"csv.{setting}")
    return table, photo_names(table, image_column)


def photo_names(table: Table, column: str) -> list[str]:
    """Raises InputError when a row names no photo, one outside the table's folder, or another row's.

    A link in that folder is followed: whoever made it may read what it points to. Nothing is ever written there.
    """
    names, first = [], {}
    for row, cell in enumerate(table.column(column)):
        name = posixpath.normpath(cell.strip())
        if not cell.strip():
            raise InputError(f"{table.where(row)}: column {column!r} is empty; it must name a photo")
        if name.startswith("/") or name.split("/")[0] == "..":
            raise InputError(f"{table.where(row)}: {cell!r} lies outside the table's folder; move the photo into it")
        if name in first:
            raise InputError(f"{table.where(row)}: the photo {name!r} is already on line {table.lines[first[name]]}")
        first[name] = row
        names.append(name)
    return names


def content_hash(path: Path) -> str:
    """Of a file's bytes; empty when it can't be read, or is no file (a pipe would be waited for for ever)."""
    try:
        if not path.is_file():
            return ""
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
    except (OSError, ValueError):  # ValueError: a name that no file system takes
        return ""


def check_missing(table: Table, names: list[str], missing: list[int], max_bad: float) -> tuple[str, ...]:
    if not missing:
        return ()
    first = f"{names[missing[0]]!r} ({table.where(missing[0])})"
    counted = f"{len(missing)} of {len(names)} photos are missing"
    if pack.too_many(len(missing), len(names), max_bad):
        raise InputError(
            f"{counted}, more than the share images.max_bad = {max_bad:g} in params.yaml allows; the first is {first}"
        )
    return (f"{counted} and left out, the first is {first}",)


def split_keys(table: Table, contents: list[str], settings: Csv) -> list[str]:
    """What decides a row's split: its group, or its photo's bytes where it has none."""
    if not settings.group_column:
        return contents
    groups = map(catalogue.clean, table.column(catalogue.clean(settings.group_column)))
    return [f"group {group}" if group else content for group, content in zip(groups, contents, strict=True)]


def own_splits(table: Table, settings: Csv) -> np.ndarray:
    column = catalogue.clean(settings.split_column)
    cells = [cell.strip().lower() for cell in table.column(column)]
    for row, cell in enumerate(cells):
        if cell not in SPLITS:
            raise InputError(f"{table.where(row)}: column {column!r} must be train, valid or test, got {cell!r}")
    return np.array([SPLITS[cell] for cell in cells])


def labelled(frame: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    known = frame["labels"].map(len) > 0
    if known.all():
        return frame, ()
    note = f"{(~known).sum()} of {len(frame)} photos have no known label and are left out"
    return frame[known].reset_index(drop=True), (note,)


def read_wardrobe(settings: Settings) -> Source:
    from m3lib.prepare import wardrobe  # here: a person's own photos need nothing of what draws garments

    return wardrobe.read(settings.wardrobe, settings.split)


DATASETS = {d.name: d for d in (deepfashion.DATASET, fashionai.DATASET, darn.DATASET)}
READERS: dict[str, Callable[[Settings], Source]] = {
    "wardrobe": read_wardrobe,
    **{dataset.name: partial(public.read, dataset) for dataset in DATASETS.values()},
    "csv": lambda settings: read_csv(settings.csv, settings.split, settings.images.max_bad),
}
