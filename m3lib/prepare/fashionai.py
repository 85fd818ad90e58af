"""FashionAI attributes (Tianchi, 2018): one attribute a photo, folders fashionAI_attributes_train1 and _train2.

Annotations/label.csv has no header: `path,attribute_labels,string`; the string has a letter per class: y for the
photo's class, m for a class that it maybe shows, n for the others. Class 0 of every attribute is `Invisible`.

Rows with an m: the released training list keeps them, the ASEN loader of December 2019 dropped them from training.
`benchmark.maybe` picks; the default follows the list. Valid and test keep them in any case, as the released rows do.
"""

import re
from pathlib import Path

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare import asen_split
from m3lib.prepare.public import Dataset, Known, Need
from m3lib.taxonomy import Attribute, Taxonomy

FOLDERS = ("fashionAI_attributes_train1", "fashionAI_attributes_train2")
ATTRIBUTES = {  # in the order of the released files' numbers, classes in the order of the letters
    "skirt length": "Invisible|Short Length|Knee Length|Midi Length|Ankle Length|Floor Length",
    "sleeve length": "Invisible|Sleeveless|Cup Sleeves|Short Sleeves|Elbow Sleeves|3/4 Sleeves|Wrist Length|"
    "Long Sleeves|Extra Long Sleeves",
    "coat length": "Invisible|High Waist Length|Regular Length|Long Length|Micro Length|Knee Length|Midi Length|"
    "Ankle&Floor Length",
    "pant length": "Invisible|Short Pant|Mid Length|3/4 Length|Cropped Pant|Full Length",
    "collar design": "Invisible|Shirt Collar|Peter Pan|Puritan Collar|Rib Collar",
    "lapel design": "Invisible|Notched|Collarless|Shawl Collar|Plus Size Shawl",
    "neckline design": "Invisible|Strapless Neck|Deep V Neckline|Straight Neck|V Neckline|Square Neckline|"
    "Off Shoulder|Round Neckline|Sweat Heart Neck|One Shoulder Neckline",
    "neck design": "Invisible|Turtle Neck|Ruffle Semi-High Collar|Low Turtle Neck|Draped Collar",
}
TAXONOMY = Taxonomy(tuple(Attribute(name, tuple(classes.split("|"))) for name, classes in ATTRIBUTES.items()))
LETTERS = re.compile(r"[ymn]*")


def read_annotations(path: Path, prefix: str) -> tuple[dict[str, list[int]], frozenset[str], int]:
    """Photo (its path after the prefix) to its one class id, the photos with an m, and how many rows repeat another.

    Raises InputError naming the line whose form, attribute or letters are wrong, or that contradicts another.
    """
    labels: dict[str, list[int]] = {}
    doubtful = set()
    lines = asen_split.read_lines(path)
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        fields = [part.strip() for part in line.split(",")]
        if len(fields) != 3:
            raise InputError(f"{where}: expected `path,attribute_labels,letters`, got {len(fields)} fields")
        name = asen_split.safe_name(f"{prefix}/{asen_split.safe_name(fields[0], where)}", where)
        found = class_of(fields[1], fields[2], where)
        if labels.setdefault(name, [found]) != [found]:
            said = TAXONOMY.full_name(labels[name][0])
            raise InputError(f"{where}: {fields[0]!r} is {TAXONOMY.full_name(found)!r} here and {said!r} above")
        if "m" in fields[2]:
            doubtful.add(name)
    return labels, frozenset(doubtful), len(lines) - len(labels)


def class_of(attribute: str, letters: str, where: str) -> int:
    name = attribute.removesuffix("_labels").replace("_", " ")
    if name not in TAXONOMY.names:
        known = ", ".join(f"{n.replace(' ', '_')}_labels" for n in TAXONOMY.names)
        raise InputError(f"{where}: {attribute!r} is no attribute of FashionAI ({known})")
    n = TAXONOMY.names.index(name)
    own = TAXONOMY.classes_of(n)
    if len(letters) != own.stop - own.start or not LETTERS.fullmatch(letters) or letters.count("y") != 1:
        raise InputError(
            f"{where}: {letters!r} should have {own.stop - own.start} letters for {name!r}, each of y, m, n, and one y"
        )
    return own.start + letters.index("y")


def read(folder: Path, settings: Settings) -> Known:
    """The labels of both training folders, or None where no label.csv is there."""
    labels: dict[str, list[int]] = {}
    doubtful: frozenset[str] = frozenset()
    notes = []
    found = [name for name in FOLDERS if (folder / name / "Annotations" / "label.csv").is_file()]
    for name in found:
        own, maybe, repeated = read_annotations(folder / name / "Annotations" / "label.csv", name)
        labels |= own
        doubtful |= maybe
        if repeated:
            notes.append(f"{repeated} rows of {name}/Annotations/label.csv repeat another")
    drop = settings.benchmark.maybe == "drop"
    if drop and not found:
        raise InputError(f"params.yaml, benchmark.maybe: no label.csv in {folder} says which photos are doubtful")
    if doubtful:
        notes.append(f"{len(doubtful)} of {len(labels)} photos have a class marked maybe")
    return Known(
        TAXONOMY,
        labels if found else None,
        told_by=" and ".join(f"{name}/Annotations/label.csv" for name in found),
        doubtful=doubtful if drop else frozenset(),
        notes=tuple(notes),
    )


DATASET = Dataset(
    name="fashionai",
    needs=(
        Need(
            tuple(f"{name}/Annotations/label.csv" for name in FOLDERS),
            "the labels of the photos (of either folder, or both)",
            optional="filenames_train.txt and label_train.txt of the released split say what is trained on",
        ),
    ),
    photos=Need(FOLDERS, "the photos"),
    origin="Official: the FashionAI data sets at tianchi.aliyun.com, attribute recognition, train1 and train2.",
    read=read,
)
