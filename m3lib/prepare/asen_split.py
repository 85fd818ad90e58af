"""Split files in the layout that the ASEN code released, read and written.

Beside a data set's photos lie, with CR LF or LF, and with or without a last newline:

    filenames_{train,valid,test}.txt     a photo's path per line
    label_train.txt                      `line attribute value [attribute value ...]`
    {query,candidate}_{valid,test}.txt   `line attribute value`

`line` counts the lines of the split's filenames from 0, `attribute` the data set's attributes, `value` the classes of
that attribute (README of github.com/Maryeon/asen). A photo stands in one row of query and candidate at most.
"""

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from m3lib.data.files import atomic
from m3lib.data.manifest import unit_hash
from m3lib.errors import InputError
from m3lib.taxonomy import Taxonomy

HELD_OUT = ("valid", "test")
ROLES = ("query", "candidate")
INTEGERS = re.compile(r"-?\d{1,9}([ \t]+-?\d{1,9})*", re.ASCII)


@dataclass(frozen=True)
class Part:
    """The photos of valid or test that have a row, in the order of the filenames."""

    names: list[str]
    roles: list[str]
    classes: list[int]  # the class id that each photo's row gives
    lines: list[tuple[Path, int]]  # where that row stands
    notes: tuple[str, ...]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file without their ends; raises InputError when it can't be read or a line is empty."""
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise InputError(f"{path}: the file can't be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text") from None
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[-1] == "":
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise InputError(f"{path}, line {number}: the line is empty")
    if not lines:
        raise InputError(f"{path}: the file is empty")
    return lines


def safe_name(text: str, where: str) -> str:
    """A photo's path inside the data folder; raises InputError for one that leaves it."""
    name = posixpath.normpath(text)
    if name.startswith("/") or name.split("/")[0] in ("..", ".") or set(name) & set("\0\r\n\\"):
        raise InputError(f"{where}: {text!r} is no path inside the data folder")
    return name


def read_names(path: Path) -> list[str]:
    """A photo's path per line; raises InputError for a path outside the folder, or one that stands there twice."""
    names, first = [], {}
    for number, line in enumerate(read_lines(path), 1):
        name = safe_name(line.strip(), f"{path}, line {number}")
        if name in first:
            raise InputError(f"{path}, line {number}: {name!r} stands on line {first[name]} already")
        first[name] = number
        names.append(name)
    return names


def read_integers(path: Path) -> list[list[int]]:
    """Integers of each line, separated by blanks; raises InputError naming the line where one is none."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        if not INTEGERS.fullmatch(line.strip()):
            raise InputError(f"{path}, line {number}: expected integers, got {line.strip()[:60]!r}")
        rows.append([int(word) for word in line.split()])
    return rows


def class_id(taxonomy: Taxonomy, attribute: int, value: int, where: str) -> int:
    """The class id of `attribute value`; raises InputError when the data set has no such class."""
    if not 0 <= attribute < taxonomy.num_attributes:
        raise InputError(f"{where}: attribute {attribute}, expected 0 to {taxonomy.num_attributes - 1}")
    own = taxonomy.classes_of(attribute)
    if not 0 <= value < own.stop - own.start:
        name = taxonomy.names[attribute]
        raise InputError(f"{where}: value {value} of {name!r}, expected 0 to {own.stop - own.start - 1}")
    return own.start + value


def read_labels(path: Path, num_names: int, taxonomy: Taxonomy) -> list[list[int]]:
    """label_train.txt: the class ids of each photo, rising; a photo without a line has none.

    Raises InputError for a line of another form, a photo that is out of range, or one that has two lines.
    """
    labels: list[list[int] | None] = [None] * num_names
    for number, row in enumerate(read_integers(path), 1):
        where = f"{path}, line {number}"
        if len(row) < 3 or len(row) % 2 == 0:
            raise InputError(f"{where}: expected `line attribute value [attribute value ...]`, got {len(row)} integers")
        index = check_index(row[0], num_names, where)
        if labels[index] is not None:
            raise InputError(f"{where}: photo {index} has a line above already")
        pairs = zip(row[1::2], row[2::2], strict=True)
        labels[index] = sorted({class_id(taxonomy, attribute, value, where) for attribute, value in pairs})
    return [found or [] for found in labels]


def check_index(index: int, count: int, where: str) -> int:
    if not 0 <= index < count:
        raise InputError(f"{where}: photo {index}, but the filenames have lines 0 to {count - 1}")
    return index


def part_files(folder: Path, split: str) -> list[Path]:
    return [folder / f"filenames_{split}.txt", *(folder / f"{role}_{split}.txt" for role in ROLES)]


def train_files(folder: Path) -> list[Path]:
    return [folder / "filenames_train.txt", folder / "label_train.txt"]


def there(paths: Sequence[Path]) -> bool:
    """Whether all of some files are there; raises InputError when only some of them are."""
    found = [path.is_file() for path in paths]
    if any(found) and not all(found):
        missing = ", ".join(path.name for path, here in zip(paths, found, strict=True) if not here)
        present = ", ".join(path.name for path, here in zip(paths, found, strict=True) if here)
        raise InputError(f"{paths[0].parent}: {present} without {missing}; put all of them there, or none")
    return all(found)


def has_parts(folder: Path) -> bool:
    """Whether the released valid and test files are there: all six, or none."""
    return there([path for split in HELD_OUT for path in part_files(folder, split)])


def read_part(folder: Path, split: str, taxonomy: Taxonomy) -> Part:
    """The queries and candidates of valid or test; raises InputError naming file and line of the first fault."""
    filenames, *row_files = part_files(folder, split)
    names = read_names(filenames)
    rows: dict[int, tuple[str, int, Path, int]] = {}
    for role, path in zip(ROLES, row_files, strict=True):
        for number, row in enumerate(read_integers(path), 1):
            where = f"{path}, line {number}"
            if len(row) != 3:
                raise InputError(f"{where}: expected `line attribute value`, got {len(row)} integers")
            index = check_index(row[0], len(names), where)
            if index in rows:
                _, _, other, line = rows[index]
                raise InputError(f"{where}: photo {index} has a row already, in {other.name}, line {line}")
            rows[index] = (role, class_id(taxonomy, row[1], row[2], where), path, number)
    order = sorted(rows)
    without = len(names) - len(order)
    notes = (f"{without} of {len(names)} photos of {filenames.name} have no row and are left out",) if without else ()
    return Part(
        names=[names[i] for i in order],
        roles=[rows[i][0] for i in order],
        classes=[rows[i][1] for i in order],
        lines=[rows[i][2:] for i in order],
        notes=notes,
    )


def draw_rows(names: Sequence[str], labels: Sequence[Sequence[int]]) -> np.ndarray:
    """(I,) one class id of each photo, as ASEN's rows have, drawn from its labels by a hash of its name; else -1."""
    u = unit_hash(names, "row")
    return np.array([ids[int(x * len(ids))] if len(ids) else -1 for ids, x in zip(labels, u, strict=True)], int)


def draw_roles(names: Sequence[str], rows: np.ndarray, splits: np.ndarray, query: float, taxonomy: Taxonomy):
    """(I,) query | candidate by a hash of the name: of each attribute's rows in valid and in test the share `query`.

    At least one of each where there are two or more. Train gets the empty role.
    """
    roles = np.full(len(rows), "", dtype=object)
    u = unit_hash(names, "role")
    attribute = np.where(rows >= 0, taxonomy.attribute_of_class[rows], -1)
    for split in HELD_OUT:
        for n in range(taxonomy.num_attributes):
            own = np.flatnonzero((splits == split) & (attribute == n))
            own = own[np.argsort(u[own], kind="stable")]
            count = min(max(1, round(query * len(own))), max(len(own) - 1, 0))
            roles[own[:count]], roles[own[count:]] = ROLES
    return roles


def write(manifest: pd.DataFrame, taxonomy: Taxonomy, folder: Path) -> None:
    """Write the manifest's split in the released layout, so that others can use the same; see the module.

    manifest: with a column `row`, the class id that stands for a photo of valid or test in its row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", *HELD_OUT):
        own = manifest[manifest["split"] == split]
        write_lines(folder / f"filenames_{split}.txt", own["image"])
        if split == "train":
            pairs = (" ".join(pair(m, taxonomy) for m in ids) for ids in own["labels"])
            write_lines(folder / "label_train.txt", (f"{i} {text}" for i, text in enumerate(pairs)))
            continue
        for role in ROLES:
            chosen = zip(own["role"] == role, own["row"], strict=True)
            rows = (f"{i} {pair(m, taxonomy)}" for i, (here, m) in enumerate(chosen) if here)
            write_lines(folder / f"{role}_{split}.txt", rows)


def pair(class_id: int, taxonomy: Taxonomy) -> str:
    """`attribute value` of a class id."""
    n = int(taxonomy.attribute_of_class[class_id])
    return f"{n} {class_id - int(taxonomy.offsets[n])}"


def write_lines(path: Path, lines) -> None:
    with atomic(path) as temporary:
        temporary.write_bytes("".join(f"{line}\n" for line in lines).encode())
