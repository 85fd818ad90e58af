"""What the tests of a person's own catalogue share: reading it, and its class names."""

from downloads import labels_of
from m3lib.data.manifest import Source
from m3lib.prepare import catalogue, splits, table


def class_names(source: Source) -> list[dict[str, list[str]]]:
    """Return the class names of each row, by attribute."""
    return list(labels_of(source).values())


def read(tiny_catalogue, max_unreadable: float = 0.0, **changes: object) -> Source:
    """Read a catalogue and draw its splits, without looking at the photos."""
    return splits.draw(catalogue.read(tiny_catalogue.set(**changes), max_unreadable), tiny_catalogue.split)


def open_table(tiny_catalogue, max_unreadable: float = 0.0, **changes: object) -> table.Table:
    return table.open_table(tiny_catalogue.set(**changes), max_unreadable)
