"""DeepFashion, Category and Attribute Prediction (Liu et al., CVPR 2016): 1,000 attributes in five types.

Anno/ (Anno_coarse/ in later downloads) has list_attr_cloth.txt (`name type`, names contain blanks), list_attr_img.txt
(`path` and a value per attribute: 1 present, -1 absent, 0 unknown) and list_bbox.txt; Eval/ has
list_eval_partition.txt. All start with the number of their rows and a header. The five types are our attributes, the
attributes of a type our classes, several a photo; the classes of a type stand in the order of list_attr_cloth.txt,
which is what the released rows' values count.

The released split (8:1:1 of the photos with a label) is not the official partition, which is used only where the
released files are not there. Each photo's labels come from list_attr_img.txt in any case.
"""

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from m3lib.config import Settings
from m3lib.errors import InputError
from m3lib.prepare import asen_split
from m3lib.prepare.public import Dataset, Known, Need
from m3lib.taxonomy import Attribute, Taxonomy

TYPES = ("texture", "fabric", "shape", "part", "style")
PARTS = {"train": "train", "val": "valid", "test": "test"}
ANNOTATIONS = ("Anno", "Anno_coarse")


def annotation(name: str, what: str, optional: str = "") -> Need:
    return Need(tuple(f"{folder}/{name}" for folder in ANNOTATIONS), what, optional)


CLASSES = annotation("list_attr_cloth.txt", "the 1,000 attributes and their types")
LABELS = annotation("list_attr_img.txt", "the attributes of every photo")
BOXES = annotation("list_bbox.txt", "bounding boxes", optional="benchmark.box must be false")
PARTITION = Need(("Eval/list_eval_partition.txt",), "the official split", optional="where the released split is there")


def count_rows(path: Path, first: bytes) -> int:
    """The number on line 1; raises InputError where there is none."""
    if not first.strip().isdigit() or len(first.strip()) > 9:
        raise InputError(f"{path}, line 1: expected the number of rows, got {first.strip()[:40].decode('latin-1')!r}")
    return int(first)


def rows_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line number and text of every row after the count and the header.

    Raises InputError for an empty line, or when the count on line 1 disagrees.
    """
    try:
        with path.open("rb") as file:
            expected = count_rows(path, file.readline())
            file.readline()
            number, empty = 2, 0
            for number, line in enumerate(tqdm(file, total=expected, desc=path.name, unit="row", delay=2), 3):
                if not line.strip():
                    empty = empty or number
                elif empty:
                    raise InputError(f"{path}, line {empty}: the line is empty")
                else:
                    yield number, line
    except OSError as error:
        raise InputError(f"{path}: the file can't be read ({error.strerror or error})") from None
    found = (empty or number + 1) - 3
    if found != expected:
        raise InputError(f"{path}: line 1 announces {expected} rows, and {found} follow; is the file complete?")


def text_of(data: bytes, where: str) -> str:
    try:
        return data.decode().strip()
    except UnicodeDecodeError:
        raise InputError(f"{where}: not UTF-8 text") from None


def read_classes(path: Path) -> tuple[Taxonomy, list[int]]:
    """The taxonomy, and the class id of each line of list_attr_cloth.txt; a type without attributes is left out."""
    names: list[list[str]] = [[] for _ in TYPES]
    places = []  # of each line: its type, and its number within the type
    for number, line in rows_of(path):
        where = f"{path}, line {number}"
        *name, kind = text_of(line, where).rsplit(None, 1)
        if not name or kind not in ("1", "2", "3", "4", "5"):
            raise InputError(f"{where}: expected `name type` with a type from 1 to 5, got {line[:60]!r}")
        own = names[int(kind) - 1]
        places.append((int(kind) - 1, len(own)))
        own.append(" ".join(name[0].split()))
    kept = [n for n, own in enumerate(names) if own]
    attributes = [Attribute(TYPES[n], tuple(distinct(names[n])), multi=True) for n in kept]
    try:
        taxonomy = Taxonomy(tuple(attributes))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return taxonomy, [int(taxonomy.offsets[kept.index(n)]) + place for n, place in places]


def distinct(names: list[str]) -> Iterator[str]:
    """Names of one type, a repeated one with its number."""
    for i, name in enumerate(names):
        yield name if name not in names[:i] else f"{name} ({i})"


def read_labels(path: Path, class_ids: list[int]) -> tuple[dict[str, list[int]], int]:
    """Photo to its class ids, rising, and how many rows only repeat another; raises InputError naming a bad line."""
    labels: dict[str, list[int]] = {}
    repeated = 0
    for number, line in rows_of(path):
        name, present = parse_row(line, len(class_ids), path, number)
        name = asen_split.safe_name(text_of(name, f"{path}, line {number}"), f"{path}, line {number}")
        ids = sorted(class_ids[i] for i in present)
        if name in labels:
            repeated += 1
            if labels[name] != ids:
                raise InputError(f"{path}, line {number}: {name!r} has other labels on a line above")
        labels[name] = ids
    return labels, repeated


def parse_row(line: bytes, count: int, path: Path, number: int) -> tuple[bytes, list[int]]:
    """The path, and the columns that hold 1. The path may contain blanks: the last `count` words are the values.

    A word is 1, -1 or 0. With "-1" written as "0", a good row is `count` words and `count` characters of 0 and 1; that
    is quicker to see than word by word, and there are 289 million of them.
    """
    words = line.split(None, 1)
    name, values = words[0], words[1] if len(words) == 2 else b""
    given = len(values.split())
    if given > count:
        name, *rest = line.strip().rsplit(None, count)
        values = b" ".join(rest)
        given = count
    digits = values.replace(b"-1", b"0").translate(None, b" \t\r\n")
    if given != count or len(digits) != count or digits.translate(None, b"01"):
        raise InputError(f"{path}, line {number}: {fault(values, count)}")
    present, i = [], digits.find(b"1")
    while i >= 0:
        present.append(i)
        i = digits.find(b"1", i + 1)
    return name, present


def fault(values: bytes, count: int) -> str:
    words = values.split()
    bad = next((word for word in words if word not in (b"1", b"-1", b"0")), None)
    if bad is not None:
        return f"a value is {bad[:20].decode('latin-1')!r}, expected 1, -1 or 0"
    return f"{len(words)} values after the path, expected {count}, one for each row of list_attr_cloth.txt"


def read_partition(path: Path) -> dict[str, str]:
    """Photo to train | valid | test; raises InputError for a photo in two of them."""
    splits: dict[str, str] = {}
    for number, line in rows_of(path):
        where = f"{path}, line {number}"
        words = text_of(line, where).rsplit(None, 1)
        if len(words) != 2 or words[1] not in PARTS:
            raise InputError(f"{where}: expected `path part` with the part train, val or test")
        name, part = asen_split.safe_name(words[0], where), PARTS[words[1]]
        if splits.setdefault(name, part) != part:
            raise InputError(f"{where}: {name!r} is in another part on a line above")
    return splits


def read_boxes(path: Path) -> dict[str, tuple[int, int, int, int]]:
    """Photo to (left, top, right, bottom) in pixels of the photo."""
    boxes: dict[str, tuple[int, int, int, int]] = {}
    for number, line in rows_of(path):
        where = f"{path}, line {number}"
        words = text_of(line, where).rsplit(None, 4)
        if len(words) != 5 or not all(map(is_pixel, words[1:])):
            raise InputError(f"{where}: expected `path x1 y1 x2 y2` in pixels")
        left, top, right, bottom = map(int, words[1:])
        if left >= right or top >= bottom:
            raise InputError(f"{where}: the box {left} {top} {right} {bottom} has no area")
        name, box = asen_split.safe_name(words[0], where), (left, top, right, bottom)
        if boxes.setdefault(name, box) != box:
            raise InputError(f"{where}: {name!r} has another box on a line above")
    return boxes


def is_pixel(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 9


def read(folder: Path, settings: Settings) -> Known:
    """What the annotation files say; the official partition only where the released split is not there."""
    taxonomy, class_ids = read_classes(CLASSES.found(folder))
    path = LABELS.found(folder)
    labels, repeated = read_labels(path, class_ids)
    notes = [f"{repeated} rows of {path.name} repeat another"] if repeated else []
    boxes, splits = {}, None
    if settings.benchmark.box:
        found = BOXES.found(folder)
        if found is None:
            raise InputError(f"params.yaml, benchmark.box: {folder} has no {' or '.join(BOXES.paths)}")
        boxes = read_boxes(found)
    if not asen_split.has_parts(folder):
        found = PARTITION.found(folder)
        if found is None:
            raise InputError(f"{folder}: neither the released split files nor {PARTITION.paths[0]} is there")
        splits = read_partition(found)
    return Known(taxonomy, labels, told_by=path.name, splits=splits, boxes=boxes, notes=tuple(notes))


DATASET = Dataset(
    name="deepfashion",
    needs=(CLASSES, LABELS, BOXES, PARTITION),
    photos=Need(("img", "Img/img"), "the photos, img/<name>/img_<number>.jpg"),
    origin="Official: mmlab.ie.cuhk.edu.hk/projects/DeepFashion/AttributePrediction.html.",
    read=read,
)
