"""Read DeepFashion, Category and Attribute Prediction (Liu et al., CVPR 2016): 1,000 attributes in five types.

The five types are our attributes; the attributes of a type are our classes, in the order of list_attr_cloth.txt, and a
photo may have several. Anno/ (Anno_coarse/ in later downloads) holds list_attr_cloth.txt (`name type`) and
list_attr_img.txt (`path` and one value per attribute: 1 present, -1 absent, 0 unknown); Eval/ holds
list_eval_partition.txt. Each starts with its number of rows and a header.

The released split (8:1:1 of the labelled photos) differs from the official partition, which is used only if the
released files are missing.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from m3lib.errors import InputError
from m3lib.prepare.asen_split import HELD_OUT_FILES, all_exist, by_photo, read_lines
from m3lib.prepare.public import Annotations, Dataset, RequiredFile
from m3lib.taxonomy import Attribute, Taxonomy

TYPES = ("texture", "fabric", "shape", "part", "style")
VALUES = {"1", "-1", "0"}  # of an attribute: present, absent, unknown
SPLITS = {"train": "train", "val": "valid", "test": "test"}


CLASSES = RequiredFile(
    ("Anno/list_attr_cloth.txt", "Anno_coarse/list_attr_cloth.txt"), "the 1,000 attributes and their types"
)
LABELS = RequiredFile(("Anno/list_attr_img.txt", "Anno_coarse/list_attr_img.txt"), "the attributes of every photo")
PARTITION = RequiredFile(("Eval/list_eval_partition.txt",), "the official split", instead=HELD_OUT_FILES)


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, text) of every row after the number of rows and the header.

    Raises InputError if the number of rows on line 1 is wrong.
    """
    lines = read_lines(path)
    where, first = next(lines)
    if not re.fullmatch("[0-9]{1,9}", first):
        raise InputError(f"{where}: expected the number of rows, got {first[:40]!r}")
    next(lines, None)  # the header
    count = 0
    for row in tqdm(lines, total=int(first), desc=path.name, unit="row", delay=2):
        count += 1
        yield row
    if count != int(first):
        raise InputError(f"{path}: line 1 announces {int(first)} rows, and {count} follow; is the file complete?")


def read_classes(path: Path) -> tuple[Taxonomy, list[int]]:
    """Return the taxonomy and the class id of each row of list_attr_cloth.txt; a type without rows is left out."""
    classes: dict[int, list[str]] = {kind: [] for kind in range(len(TYPES))}
    rows = []  # of the file: its type, and its number within the type
    for where, text in read_table(path):
        name, _, kind = " ".join(text.split()).rpartition(" ")
        if not name or kind not in ("1", "2", "3", "4", "5"):
            raise InputError(f"{where}: expected `name type` with a type from 1 to 5, got {text[:60]!r}")
        same_type = classes[int(kind) - 1]
        rows.append((int(kind) - 1, len(same_type)))
        same_type.append(f"{name} ({len(same_type)})" if name in same_type else name)
    kinds = [kind for kind in classes if classes[kind]]
    try:
        taxonomy = Taxonomy(tuple(Attribute(TYPES[kind], tuple(classes[kind]), multi=True) for kind in kinds))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return taxonomy, [int(taxonomy.offsets[kinds.index(kind)]) + number for kind, number in rows]


def read_labels(path: Path, class_ids: list[int]) -> Iterator[tuple[str, str, list[int]]]:
    """Yield (file and line number, photo, class ids in ascending order) of each row of list_attr_img.txt."""
    for where, text in read_table(path):
        name, *values = text.rsplit(None, len(class_ids))  # the path may contain blanks
        if not set(values) <= VALUES:
            value = next(value for value in values if value not in VALUES)
            raise InputError(f"{where}: a value is {value[:20]!r}, expected 1, -1 or 0")
        if len(values) != len(class_ids):
            problem = f"{len(values)} values after the path, expected {len(class_ids)}"
            raise InputError(f"{where}: {problem}, one for each row of list_attr_cloth.txt")
        yield where, name, sorted(m for m, value in zip(class_ids, values, strict=True) if value == "1")


def read_partition(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (file and line number, photo, train | valid | test) of each row of list_eval_partition.txt."""
    for where, text in read_table(path):
        name, *split = text.rsplit(None, 1)
        if len(split) != 1 or split[0] not in SPLITS:
            raise InputError(f"{where}: expected `path part` with the part train, val or test")
        yield where, name, SPLITS[split[0]]


def read(folder: Path) -> Annotations:
    """Read the annotation files; the official partition only if the released split is missing."""
    taxonomy, class_ids = read_classes(CLASSES.find(folder))
    path, partition = LABELS.find(folder), PARTITION.find(folder)
    labels, notes = by_photo(read_labels(path, class_ids), path.name)
    if all_exist(folder, HELD_OUT_FILES):
        return Annotations(taxonomy, labels, path.name, notes=notes)
    splits, _ = by_photo(read_partition(partition), partition.name)
    return Annotations(taxonomy, labels, path.name, splits, notes)


DATASET = Dataset(
    name="deepfashion",
    files=(CLASSES, LABELS, PARTITION),
    photos=RequiredFile(("img", "Img/img"), "the photos, img/<name>/img_<number>.jpg"),
    origin="Official: mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html.",
    protocol="pair",
    read=read,
    quick=False,  # 289,222 rows of 1,000 values
    taxonomy=lambda folder: read_classes(CLASSES.find(folder))[0],
)
