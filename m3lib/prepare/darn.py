"""DARN (Huang et al., ICCV 2015): shop photos with up to nine labels each, under pic/<item>/<name>.jpg.

The images are handed out as a list of addresses, many of them dead by now: photos that are gone are counted and left
out (`images.max_bad` may have to be raised). The names of the classes were never published with the split files, so
they are numbers here. Labels come from the released files, or from labels.csv, a form of our own for whoever holds the
original table: a header `path` and the nine attributes, then a row per photo, -1 or empty for a label that is missing.
"""

from pathlib import Path

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare import asen_split, catalogue
from m3lib.prepare.public import Dataset, Known, Need
from m3lib.taxonomy import Attribute, Taxonomy

ATTRIBUTES = {  # in the order of the released files' numbers; number of classes (data/meta.json of the ASEN code)
    "clothes category": 20,
    "clothes button": 13,
    "clothes color": 55,
    "clothes length": 7,
    "clothes pattern": 28,
    "clothes shape": 11,
    "collar shape": 26,
    "sleeve length": 8,
    "sleeve shape": 17,
}
TAXONOMY = Taxonomy(tuple(Attribute(name, tuple(map(str, range(count)))) for name, count in ATTRIBUTES.items()))
LABELS = "labels.csv"


def read_table(path: Path) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Photo to its class ids, and notes; raises InputError naming the line of the first fault."""
    table = catalogue.read_table(path)
    if table.columns != ("path", *ATTRIBUTES):
        raise InputError(f"{path}, line 1: the header must be path,{','.join(ATTRIBUTES)}")
    labels: dict[str, list[int]] = {}
    for row, (name, *values) in enumerate(table.rows):
        where = table.where(row)
        name = asen_split.safe_name(name.strip(), where)
        ids = [class_of(n, value.strip(), where) for n, value in enumerate(values)]
        ids = [m for m in ids if m >= 0]
        if labels.setdefault(name, ids) != ids:
            raise InputError(f"{where}: {name!r} has other labels on a line above")
    notes = []
    if repeated := len(table.rows) - len(labels):
        notes.append(f"{repeated} rows of {path.name} repeat another")
    if empty := sum(not ids for ids in labels.values()):
        notes.append(f"{empty} of {len(labels)} photos in {path.name} have no label")
    return labels, tuple(notes)


def class_of(attribute: int, value: str, where: str) -> int:
    if value in ("", "-1"):
        return -1
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise InputError(f"{where}: {TAXONOMY.names[attribute]!r} is {value!r}, expected a number, or -1 for unknown")
    return asen_split.class_id(TAXONOMY, attribute, int(value), where)


def read(folder: Path, settings: Settings) -> Known:
    """The labels of labels.csv, or None where it is not there."""
    path = folder / LABELS
    if not path.is_file():
        return Known(TAXONOMY, None)
    labels, notes = read_table(path)
    return Known(TAXONOMY, labels, told_by=LABELS, notes=notes)


DATASET = Dataset(
    name="darn",
    needs=(
        Need(
            (LABELS, "label_train.txt"),
            "the labels: filenames_train.txt and label_train.txt of the released split, or a table of your own",
        ),
    ),
    photos=Need(("pic",), "the photos, pic/<item>/<name>.jpg"),
    origin="Official: by request to the authors; README of github.com/Maryeon/asen links the addresses of the photos.",
    read=read,
)
