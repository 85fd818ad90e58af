"""Read FashionAI attributes (Tianchi, 2018): one attribute per photo, in two training folders.

Annotations/label.csv of each folder has no header: `path,attribute_labels,letters`, with one letter per class: y for
the photo's class, m for a class that it maybe has, n for the others. Class 0 of every attribute is `Invisible`.

The released training list keeps rows with an m; the ASEN loader of December 2019 dropped them from training. The
setting benchmark.maybe selects one; valid and test keep them in any case.
"""

import re
from pathlib import Path

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare.asen_split import add_once, read_lines, safe_name
from m3lib.prepare.public import Annotations, Dataset, RequiredFile
from m3lib.taxonomy import Attribute, Taxonomy

FOLDERS = ("fashionAI_attributes_train1", "fashionAI_attributes_train2")
ATTRIBUTES = {  # in the order of the released files; classes in the order of the letters
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
    """Return photo (prefix and path) -> its class id, the photos with an m, and the number of repeated rows.

    Raises InputError naming the line if its form, attribute or letters are wrong, or it contradicts another line.
    """
    labels: dict[str, list[int]] = {}
    doubtful = set()
    lines = read_lines(path)
    for where, line in lines:
        fields = [text.strip() for text in line.split(",")]
        if len(fields) != 3:
            raise InputError(f"{where}: expected `path,attribute_labels,letters`, got {len(fields)} fields")
        name = safe_name(f"{prefix}/{safe_name(fields[0], where)}", where)
        add_once(labels, name, [class_of(fields[1], fields[2], where)], where)
        if "m" in fields[2]:
            doubtful.add(name)
    return labels, frozenset(doubtful), len(lines) - len(labels)


def class_of(attribute: str, letters: str, where: str) -> int:
    """Return the class id of an attribute's letters; raises InputError for another attribute or other letters."""
    name = attribute.removesuffix("_labels").replace("_", " ")
    if name not in TAXONOMY.names:
        names = ", ".join(f"{n.replace(' ', '_')}_labels" for n in TAXONOMY.names)
        raise InputError(f"{where}: {attribute!r} is no attribute of FashionAI ({names})")
    classes = TAXONOMY.classes_of(TAXONOMY.names.index(name))
    count = classes.stop - classes.start
    if len(letters) != count or not LETTERS.fullmatch(letters) or letters.count("y") != 1:
        raise InputError(f"{where}: {letters!r} should have {count} letters for {name!r}, each of y, m, n, and one y")
    return classes.start + letters.index("y")


def read(folder: Path, settings: Settings) -> Annotations:
    """Read the labels of both folders; without any label.csv, only the released split files have labels."""
    labels: dict[str, list[int]] = {}
    doubtful: frozenset[str] = frozenset()
    notes = []
    files = [name for name in LABELS.paths if (folder / name).is_file()]
    for file in files:
        more, maybe, repeated = read_annotations(folder / file, file.partition("/")[0])
        labels |= more
        doubtful |= maybe
        if repeated:
            notes.append(f"{repeated} rows of {file} repeat another")
    drop = settings.benchmark.maybe == "drop"
    if drop and not files:
        raise InputError(f"params.yaml, benchmark.maybe: no label.csv in {folder} marks doubtful photos")
    if doubtful:
        notes.append(f"{len(doubtful)} of {len(labels)} photos have a class marked maybe")
    return Annotations(
        TAXONOMY,
        labels if files else None,
        " and ".join(files),
        doubtful=doubtful if drop else frozenset(),
        notes=tuple(notes),
    )


LABELS = RequiredFile(
    tuple(f"{name}/Annotations/label.csv" for name in FOLDERS),
    "the labels of the photos (of either folder, or both)",
    optional="filenames_train.txt and label_train.txt of the released split must be there",
)
DATASET = Dataset(
    name="fashionai",
    files=(LABELS,),
    photos=RequiredFile(FOLDERS, "the photos"),
    origin="Official: the FashionAI data sets at tianchi.aliyun.com, attribute recognition, train1 and train2.",
    protocol="row",
    read=read,
)
