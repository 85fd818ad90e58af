"""Read FashionAI attributes (Tianchi, 2018): one attribute per photo, in two training folders.

Annotations/label.csv of each folder has no header: `path,attribute_labels,letters`, with one letter per class: y for
the photo's class, m for a class that it maybe has, n for the others. Class 0 of every attribute is `Invisible`.

Rows with an m are used with the class of their y, as in the released training list; the ASEN loader of December 2019
dropped them from training.
"""

from collections.abc import Iterator
from pathlib import Path

from m3lib.errors import InputError
from m3lib.prepare.asen_split import HELD_OUT_FILES, RELEASED, all_exist, by_photo, fault, is_filled, read_lines
from m3lib.prepare.public import Annotations, Dataset, RequiredFile
from m3lib.taxonomy import Attribute, Taxonomy

FOLDERS = ("fashionAI_attributes_train1", "fashionAI_attributes_train2")
LABEL_FILE = "Annotations/label.csv"
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


def read_labels(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (file and line number, path, [class id]) of each row; raises InputError if its form is wrong."""
    for where, line in read_lines(path):
        fields = [text.strip() for text in line.split(",")]
        if len(fields) != 3:
            raise InputError(f"{where}: expected `path,attribute_labels,letters`, got {len(fields)} fields")
        yield where, fields[0], [class_of(fields[1], fields[2], where)]


def class_of(attribute: str, letters: str, where: str) -> int:
    """Return the class id of an attribute's letters; raises InputError for another attribute or other letters."""
    name = attribute.removesuffix("_labels").replace("_", " ")
    if name not in TAXONOMY.names:
        names = ", ".join(f"{n.replace(' ', '_')}_labels" for n in TAXONOMY.names)
        raise InputError(f"{where}: {attribute!r} is no attribute of FashionAI ({names})")
    classes = TAXONOMY.classes_of(TAXONOMY.names.index(name))
    count = classes.stop - classes.start
    if len(letters) != count or set(letters) - set("ymn") or letters.count("y") != 1:
        raise InputError(f"{where}: {letters!r} should have {count} letters for {name!r}, each of y, m, n, and one y")
    return classes.start + letters.index("y")


def read(folder: Path) -> Annotations:
    """Read the labels of both folders; without any label.csv, only the released split files have labels."""
    labels: dict[str, list[int]] = {}
    notes = []
    files = [name for name in LABELS.paths if is_filled(folder / name)]
    for file in files:
        ids, repeated = by_photo(read_labels(folder / file), file)
        labels |= {f"{file.partition('/')[0]}/{name}": ids[name] for name in ids}
        notes += repeated
    unlabelled = [top for top in FOLDERS if files and f"{top}/{LABEL_FILE}" not in files and (folder / top).is_dir()]
    notes += [f"the photos of {top} are left out: it has no {LABEL_FILE}" for top in unlabelled]
    return Annotations(TAXONOMY, labels if files else None, " and ".join(files), notes=notes)


def faults(folder: Path) -> Iterator[str]:
    """Yield what the training folders lack: the released split names photos of both; a drawn one, those with labels."""
    released, labels = all_exist(folder, HELD_OUT_FILES), [path for path in LABELS.paths if is_filled(folder / path)]
    needed = [path for path in LABELS.paths if labels and (released or path in labels)]
    needed += [f"{top}/Images" for top in FOLDERS if released or f"{top}/{LABEL_FILE}" in labels]
    yield from (fault(folder, path) for path in needed if not is_filled(folder / path))


LABELS = RequiredFile(
    tuple(f"{top}/{LABEL_FILE}" for top in FOLDERS),
    "the labels of the photos (of either folder, or both)",
    instead=RELEASED,
)
DATASET = Dataset(
    name="fashionai",
    files=(LABELS,),
    photos=RequiredFile(FOLDERS, "the photos"),
    origin="Official: the FashionAI data sets at tianchi.aliyun.com, attribute recognition, train1 and train2.",
    protocol="row",
    read=read,
    taxonomy=lambda folder: TAXONOMY,
    faults=faults,
)
