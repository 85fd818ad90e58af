"""Read DARN (Huang et al., ICCV 2015): shop photos with up to nine labels each, under pic/<item>/<name>.jpg.

The photos are published as a list of addresses, many of them dead: missing photos are counted and left out (raise
images.max_bad if necessary). The names of the classes were never published with the split files, so they are numbers
here. Labels come from the released split files, or from labels.csv, for those who have the original table: a header of
`path` and the nine attributes, then one row per photo, -1 or empty for a missing label.
"""

from pathlib import Path

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare.asen_split import add_once, class_id, safe_name
from m3lib.prepare.catalogue import read_table
from m3lib.prepare.public import Annotations, Dataset, RequiredFile
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


def read_labels(path: Path) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Return photo -> class ids, and notes; raises InputError naming the line of the first fault."""
    table = read_table(path)
    if list(table) != ["path", *ATTRIBUTES]:
        raise InputError(f"{path}, line 1: the header must be path,{','.join(ATTRIBUTES)}")
    labels: dict[str, list[int]] = {}
    for line, name, *values in table.itertuples():
        where = f"{path}, line {line}"
        ids = [class_of(n, value.strip(), where) for n, value in enumerate(values) if value.strip() not in ("", "-1")]
        add_once(labels, safe_name(name.strip(), where), ids, where)
    notes = []
    if repeated := len(table) - len(labels):
        notes.append(f"{repeated} rows of {path.name} repeat another")
    if empty := sum(not ids for ids in labels.values()):
        notes.append(f"{empty} of {len(labels)} photos in {path.name} have no label")
    return labels, tuple(notes)


def class_of(attribute: int, value: str, where: str) -> int:
    """Return the class id of a cell; raises InputError if it is no number of a class."""
    if not (value.isascii() and value.isdigit() and len(value) <= 9):
        raise InputError(f"{where}: {TAXONOMY.names[attribute]!r} is {value!r}, expected a number, or -1 for unknown")
    return class_id(TAXONOMY, attribute, int(value), where)


def read(folder: Path, settings: Settings) -> Annotations:
    """Read labels.csv; without it, only the released split files have labels."""
    if not (folder / LABELS).is_file():
        return Annotations(TAXONOMY, None)
    labels, notes = read_labels(folder / LABELS)
    return Annotations(TAXONOMY, labels, LABELS, notes=notes)


DATASET = Dataset(
    name="darn",
    files=(
        RequiredFile(
            (LABELS, "label_train.txt"),
            "the labels: filenames_train.txt and label_train.txt of the released split, or your own table",
        ),
    ),
    photos=RequiredFile(("pic",), "the photos, pic/<item>/<name>.jpg"),
    origin="Official: by request to the authors; README of github.com/Maryeon/asen links the addresses of the photos.",
    protocol="row",
    read=read,
)
