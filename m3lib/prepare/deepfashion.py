"""Read DeepFashion, Category and Attribute Prediction (Liu et al., CVPR 2016): 1,000 attributes in five types.

The five types are our attributes; the attributes of a type are our classes, in the order of list_attr_cloth.txt, and a
photo may have several. Anno/ (Anno_coarse/ in later downloads) holds list_attr_cloth.txt (`name type`),
list_attr_img.txt (`path` and one value per attribute: 1 present, -1 absent, 0 unknown) and list_bbox.txt; Eval/ holds
list_eval_partition.txt. Each starts with its number of rows and a header.

The released split (8:1:1 of the labelled photos) differs from the official partition, which is used only if the
released files are missing.
"""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare.asen_split import add_once, all_exist, held_out_files, safe_name
from m3lib.prepare.public import Annotations, Box, Dataset, RequiredFile
from m3lib.taxonomy import Attribute, Taxonomy

TYPES = ("texture", "fabric", "shape", "part", "style")
SPLITS = {"train": "train", "val": "valid", "test": "test"}


def annotation(name: str, what: str, optional: str = "") -> RequiredFile:
    """Return a file of the annotation folder."""
    return RequiredFile((f"Anno/{name}", f"Anno_coarse/{name}"), what, optional)


CLASSES = annotation("list_attr_cloth.txt", "the 1,000 attributes and their types")
LABELS = annotation("list_attr_img.txt", "the attributes of every photo")
BOXES = annotation("list_bbox.txt", "bounding boxes", optional="benchmark.box must be false")
PARTITION = RequiredFile(
    ("Eval/list_eval_partition.txt",), "the official split", optional="the released split must be there"
)


def read_table(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, text) of every row after the number of rows and the header.

    Raises InputError for an empty line, or if the number of rows on line 1 is wrong.
    """
    count, blank = 0, ""
    try:
        with path.open("rb") as file:
            first = file.readline().strip()
            if not first.isdigit() or len(first) > 9:
                raise InputError(f"{path}, line 1: expected the number of rows, got {first[:40].decode('latin-1')!r}")
            file.readline()
            for number, line in enumerate(tqdm(file, total=int(first), desc=path.name, unit="row", delay=2), 3):
                where = f"{path}, line {number}"
                text = line.decode().strip()
                if text and blank:
                    raise InputError(f"{blank}: the line is empty")
                if text:
                    count += 1
                    yield where, text
                else:
                    blank = blank or where  # allowed at the end of the file
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{path}: the file can't be read ({error.strerror or error})") from None
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


def read_labels(path: Path, class_ids: list[int]) -> tuple[dict[str, list[int]], int]:
    """Return photo -> class ids, ascending, and the number of rows that repeat another one."""
    labels: dict[str, list[int]] = {}
    count, total = len(class_ids), 0
    for where, text in read_table(path):
        name, *values = text.rsplit(None, count)  # the path may contain blanks
        bad = set(values) - {"1", "-1", "0"}
        if bad:
            value = next(value for value in values if value in bad)
            raise InputError(f"{where}: a value is {value[:20]!r}, expected 1, -1 or 0")
        if len(values) != count:
            problem = f"{len(values)} values after the path, expected {count}"
            raise InputError(f"{where}: {problem}, one for each row of list_attr_cloth.txt")
        ids = sorted(class_id for class_id, value in zip(class_ids, values, strict=True) if value == "1")
        add_once(labels, safe_name(name, where), ids, where)
        total += 1
    return labels, total - len(labels)


def read_partition(path: Path) -> dict[str, str]:
    """Return photo -> train | valid | test."""
    splits: dict[str, str] = {}
    for where, text in read_table(path):
        name, *split = text.rsplit(None, 1)
        if len(split) != 1 or split[0] not in SPLITS:
            raise InputError(f"{where}: expected `path part` with the part train, val or test")
        add_once(splits, safe_name(name, where), SPLITS[split[0]], where)
    return splits


def read_boxes(path: Path) -> dict[str, Box]:
    """Return photo -> bounding box."""
    boxes: dict[str, Box] = {}
    for where, text in read_table(path):
        name, *numbers = text.rsplit(None, 4)
        if len(numbers) != 4 or not all(n.isascii() and n.isdigit() and len(n) <= 9 for n in numbers):
            raise InputError(f"{where}: expected `path x1 y1 x2 y2` in pixels")
        left, top, right, bottom = box = tuple(map(int, numbers))
        if left >= right or top >= bottom:
            raise InputError(f"{where}: the box {left} {top} {right} {bottom} has no area")
        add_once(boxes, safe_name(name, where), box, where)
    return boxes


def read(folder: Path, settings: Settings) -> Annotations:
    """Read the annotation files; the official partition only if the released split is missing."""
    taxonomy, class_ids = read_classes(CLASSES.find(folder))
    path = LABELS.find(folder)
    labels, repeated = read_labels(path, class_ids)
    notes = (f"{repeated} rows of {path.name} repeat another",) if repeated else ()
    boxes, splits = {}, None
    if settings.benchmark.box:
        if not BOXES.find(folder):
            raise InputError(f"params.yaml, benchmark.box: {folder} has no {' or '.join(BOXES.paths)}")
        boxes = read_boxes(BOXES.find(folder))
    if not all_exist(held_out_files(folder)):
        if not PARTITION.find(folder):
            raise InputError(f"{folder}: neither the released split files nor {PARTITION.paths[0]} is there")
        splits = read_partition(PARTITION.find(folder))
    return Annotations(taxonomy, labels, path.name, splits, boxes, notes=notes)


DATASET = Dataset(
    name="deepfashion",
    files=(CLASSES, LABELS, BOXES, PARTITION),
    photos=RequiredFile(("img", "Img/img"), "the photos, img/<name>/img_<number>.jpg"),
    origin="Official: mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html.",
    protocol="pair",
    read=read,
)
