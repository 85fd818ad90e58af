"""Read and write split files in the layout that the ASEN code released.

They lie beside the photos of a public benchmark (README of github.com/Maryeon/asen):

    filenames_{train,valid,test}.txt     one photo's path per line
    label_train.txt                      `line attribute value [attribute value ...]`
    {query,candidate}_{valid,test}.txt   `line attribute value`

`line` counts the lines of the split's filenames from 0, `attribute` the attributes of the data set, `value` the classes
of that attribute. Lines end in LF or CR LF; a byte-order mark is skipped. A photo has at most one row in query and
candidate together.
"""

import codecs
import io
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from m3lib.data.files import atomic
from m3lib.data.manifest import salted, unit_hash
from m3lib.errors import InputError
from m3lib.taxonomy import Taxonomy

Value = TypeVar("Value")

HELD_OUT = ("valid", "test")
ROLES = ("query", "candidate")
TRAIN_FILES = ("filenames_train.txt", "label_train.txt")
HELD_OUT_FILES = tuple(f"{kind}_{split}.txt" for split in HELD_OUT for kind in ("filenames", *ROLES))
RELEASED = (*HELD_OUT_FILES, *TRAIN_FILES)  # these have labels for every photo
ROW = "`line attribute value [attribute value ...]`"
MARK = "\ufeff"  # the byte-order mark, which Excel and Notepad put before a file's first letter
INTEGERS = re.compile(r"-?\d{1,9}([ \t]+-?\d{1,9})*", re.ASCII)


def is_filled(path: Path) -> bool:
    """Return whether a path is a file that is not empty, or a folder that holds something."""
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0


def fault(folder: Path, *paths: str) -> str:
    """Return what is wrong with a file that may have any of several paths in a folder, none of which is filled."""
    empty = [str(folder / path) for path in paths if (folder / path).exists()]
    return f"{empty[0]} is empty" if empty else f"{' or '.join(paths)} is missing"


def all_exist(folder: Path, names: Sequence[str]) -> bool:
    return all(is_filled(folder / name) for name in names)


def half_there(folder: Path, names: Sequence[str]) -> str:
    """Return a sentence if some files of a folder exist and others don't, else an empty text."""
    missing = [name for name in names if not is_filled(folder / name)]
    present = ", ".join(name for name in names if name not in missing)
    return f"{present} without {', '.join(missing)}: put all of them there, or none" if missing and present else ""


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield (file and line number, stripped text) of each line of a label file; empty lines may only end the file.

    Raises InputError if the file can't be read, is empty, is not text, or has an empty line between others.
    """
    number, blank = 0, ""
    try:
        for number, line in enumerate(decoded_lines(path), 1):
            text = line.strip().strip(MARK)
            if text and blank:
                raise InputError(f"{blank}: the line is empty")
            if text:
                yield f"{path}, line {number}", text
            else:
                blank = blank or f"{path}, line {number}"
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {number + 1}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: the file can't be read ({error.strerror or error})") from None
    if not number or blank.endswith(" line 1"):
        raise InputError(f"{path}: the file is empty")


def decoded_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file, or of a UTF-16 file that starts with a byte-order mark."""
    with path.open("rb") as file:
        mark = file.read(2)
        file.seek(0)
        if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            yield from io.TextIOWrapper(file, "utf-16", newline="\n")
            return
        yield from (line.decode() for line in file)


def safe_name(text: str, where: str) -> str:
    """Return a photo's normalised path; raises InputError if it leaves the data folder."""
    name = posixpath.normpath(text)
    if name.startswith("/") or name.split("/")[0] in ("..", ".") or set(name) & set("\0\r\n\\"):
        raise InputError(f"{where}: {text!r} is no path inside the data folder")
    return name


def by_photo(rows: Iterable[tuple[str, str, Value]], file: str) -> tuple[dict[str, Value], list[str]]:
    """Return photo -> value from rows of (file and line number, path, value), and a note if rows repeat others.

    Raises InputError for a path that leaves the data folder, or if two rows of a photo have different values.
    """
    values: dict[str, Value] = {}
    repeated = 0
    for where, path, value in rows:
        name = safe_name(path, where)
        repeated += name in values
        if values.setdefault(name, value) != value:
            raise InputError(f"{where}: {name!r} has another value on a line above")
    return values, [f"{repeated} rows of {file} repeat another"] if repeated else []


def read_names(path: Path) -> dict[str, str]:
    """Return photo -> file and line number; raises InputError for a photo that is listed twice."""
    names: dict[str, str] = {}
    for where, line in read_lines(path):
        name = safe_name(line, where)
        if names.setdefault(name, where) != where:
            raise InputError(f"{where}: {name!r} is listed already, {names[name]}")
    return names


def class_id(taxonomy: Taxonomy, attribute: int, value: int, where: str) -> int:
    """Return the class id of `attribute value`; raises InputError if the data set has no such class."""
    if not 0 <= attribute < taxonomy.num_attributes:
        raise InputError(f"{where}: attribute {attribute}, expected 0 to {taxonomy.num_attributes - 1}")
    count = len(taxonomy.attributes[attribute].classes)
    if not 0 <= value < count:
        raise InputError(f"{where}: value {value} of {taxonomy.names[attribute]!r}, expected 0 to {count - 1}")
    return int(taxonomy.offsets[attribute]) + value


def read_rows(path: Path, num_names: int, taxonomy: Taxonomy) -> dict[int, tuple[str, list[int]]]:
    """Read a file of `line attribute value [attribute value ...]`: photo number -> (file and line, class ids).

    Raises InputError for a line of another form, a photo or class that does not exist, or a photo's second line.
    """
    rows: dict[int, tuple[str, list[int]]] = {}
    for where, line in read_lines(path):
        if not INTEGERS.fullmatch(line):
            raise InputError(f"{where}: expected integers, got {line[:60]!r}")
        photo, *pairs = map(int, line.split())
        if not pairs or len(pairs) % 2:
            raise InputError(f"{where}: expected {ROW}, got {len(pairs) + 1} integers")
        if not 0 <= photo < num_names:
            raise InputError(f"{where}: photo {photo}, but the filenames have lines 0 to {num_names - 1}")
        if photo in rows:
            raise InputError(f"{where}: photo {photo} already has a row, {rows[photo][0]}")
        ids = {class_id(taxonomy, *pair, where) for pair in zip(pairs[::2], pairs[1::2], strict=True)}
        rows[photo] = where, sorted(ids)
    return rows


def read_held_out(folder: Path, split: str, taxonomy: Taxonomy) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Read the photos of valid or test that have a row: columns image, role, row (class id), where; and notes."""
    names, rows = list(read_names(folder / f"filenames_{split}.txt")), {}
    for role in ROLES:
        for photo, (where, ids) in read_rows(folder / f"{role}_{split}.txt", len(names), taxonomy).items():
            if len(ids) != 1:
                raise InputError(f"{where}: expected `line attribute value`, got {len(ids)} pairs")
            if photo in rows:
                raise InputError(f"{where}: photo {photo} already has a row, {rows[photo][3]}")
            rows[photo] = names[photo], role, ids[0], where
    frame = pd.DataFrame([rows[photo] for photo in sorted(rows)], columns=["image", "role", "row", "where"])
    missing = len(names) - len(rows)
    note = f"{missing} of {len(names)} photos of filenames_{split}.txt have no row and are left out"
    return frame, (note,) if missing else ()


def draw_rows(names: Sequence[str], labels: Sequence[Sequence[int]]) -> np.ndarray:
    """Draw (I,) one class id of each photo's labels by a hash of its name; -1 for a photo without labels."""
    u = unit_hash(names, "row")
    return np.array([ids[int(x * len(ids))] if len(ids) else -1 for ids, x in zip(labels, u, strict=True)], int)


def draw_roles(
    names: Sequence[str], rows: np.ndarray, splits: np.ndarray, query: float, taxonomy: Taxonomy, seed: int = 0
) -> np.ndarray:
    """Draw (I,) query | candidate by a hash of the name: a share `query` of each attribute's rows in valid and in test.

    Two or more rows get at least one of each role. Photos of train get the empty role.
    """
    roles = np.full(len(rows), "", dtype=object)
    u = unit_hash(names, salted("role", seed))
    attribute = np.where(rows >= 0, taxonomy.attribute_of_class[rows], -1)
    for split in HELD_OUT:
        for n in range(taxonomy.num_attributes):
            photos = np.flatnonzero((splits == split) & (attribute == n))
            photos = photos[np.argsort(u[photos], kind="stable")]
            count = min(max(1, round(query * len(photos))), max(len(photos) - 1, 0))
            roles[photos[:count]], roles[photos[count:]] = ROLES
    return roles


def write(manifest: pd.DataFrame, taxonomy: Taxonomy, folder: Path) -> None:
    """Write the split of a manifest with a column `row` in the released layout, so that others can use it."""

    def pair(class_id: int) -> str:
        n = int(taxonomy.attribute_of_class[class_id])
        return f"{n} {class_id - int(taxonomy.offsets[n])}"

    lines: dict[str, Iterable[str]] = {}
    for split in ("train", *HELD_OUT):
        frame = manifest[manifest["split"] == split].reset_index(drop=True)
        lines[f"filenames_{split}"] = frame["image"]
        if split == "train":
            lines["label_train"] = [f"{i} {' '.join(map(pair, ids))}" for i, ids in frame["labels"].items()]
            continue
        for role in ROLES:
            rows = frame["row"][frame["role"] == role]
            lines[f"{role}_{split}"] = [f"{i} {pair(m)}" for i, m in rows.items()]
    for name, texts in lines.items():
        with atomic(folder / f"{name}.txt") as temporary:
            temporary.write_bytes("".join(f"{text}\n" for text in texts).encode())
