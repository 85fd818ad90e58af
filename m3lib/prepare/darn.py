"""Read DARN (Huang et al., ICCV 2015): shop photos with up to nine labels each, under pic/<item>/<name>.jpg.

The photos are published as a list of addresses, many of them dead: missing photos are counted and left out (raise
images.max_unreadable if necessary). The names of the classes were never published with the split files, so they are
numbers here. Labels come from the released split files, or from labels.csv, for those who have the original table: a
header of `path` and the nine attributes, then one row per photo, -1 or empty for a missing label.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from m3lib.errors import InputError
from m3lib.prepare.asen_split import RELEASED, by_photo, class_id, is_filled
from m3lib.prepare.public import Annotations, Dataset, RequiredFile
from m3lib.prepare.table import read_table
from m3lib.taxonomy import Attribute, Taxonomy

ATTRIBUTES = {  # in the order of the released files, with the number of classes (data/meta.json of the ASEN code)
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


def read_labels(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (file and line number, photo, class ids) of each row; raises InputError naming the line of a fault."""
    table = read_table(path)
    if list(table) != ["path", *ATTRIBUTES]:
        raise InputError(f"{path}, line 1: the header must be path,{','.join(ATTRIBUTES)}")
    for line, name, *cells in table.itertuples():
        where, ids = f"{path}, line {line}", []
        for n, value in enumerate(map(str.strip, cells)):
            if value in ("", "-1"):
                continue
            if not re.fullmatch("[0-9]{1,9}", value):
                raise InputError(f"{where}: {TAXONOMY.names[n]!r} is {value!r}, expected a number, or -1 for unknown")
            ids.append(class_id(TAXONOMY, n, int(value), where))
        yield where, name.strip(), ids


def read(folder: Path) -> Annotations:
    """Read labels.csv; without it, only the released split files have labels."""
    if not is_filled(folder / LABELS):
        return Annotations(TAXONOMY, None)
    labels, notes = by_photo(read_labels(folder / LABELS), LABELS)
    return Annotations(TAXONOMY, labels, LABELS, notes=notes)


DATASET = Dataset(
    name="darn",
    files=(RequiredFile((LABELS,), "your own table of the labels, if you have the original one", instead=RELEASED),),
    photos=RequiredFile(("pic",), "the photos, pic/<item>/<name>.jpg"),
    origin="Official: by request to the authors; README of github.com/Maryeon/asen links the addresses of the photos.",
    protocol="row",
    read=read,
    taxonomy=lambda folder: TAXONOMY,
)
