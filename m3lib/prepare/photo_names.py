"""Find the photos that a table names, also those whose name is written in another way than the file's."""

import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import unquote

import pandas as pd

from m3lib.taxonomy import one_line

ADDRESS = re.compile(r"(//|www\.|[a-z][a-z0-9+.-]+:/).*", re.IGNORECASE)
WINDOWS = re.compile(r"([a-z]:|\\\\).*", re.IGNORECASE)


class Photos(NamedTuple):
    """names: the photo of each row that has one, a path relative to the table's folder, by line.

    faults: sentences on broken rows, by line. missing: descriptions of photos that don't exist.
    """

    names: dict[int, str]
    faults: dict[int, str]
    missing: list[str]
    notes: list[str]


def find_photos(column: pd.Series, path: Path) -> Photos:
    """Find each row's photo; links in the table's folder are followed, other paths that lead out of it are faults."""
    find, photos, lines, respelled = Finder(path.parent), Photos({}, {}, [], []), {}, []
    for line, cell in column.items():
        written = inside(cell.strip(), path.parent)
        if not cell.strip():
            photos.faults[line] = f"line {line}: column {column.name!r} is empty; it must name a photo"
            continue
        if is_address(cell):
            written = cell.strip()
        elif written is None:
            advice = "move the photo into it and write its path relative to it"
            photos.faults[line] = f"line {line}: {cell!r} lies outside the table's folder; {advice}"
            continue
        found = find(cell)
        name = found or written
        if name in lines:
            photos.faults[line] = f"line {line}: the photo {name!r} is already on line {lines[name]}"
            continue
        lines[name] = line
        if not found:
            hint = "" if photos.missing else describe(cell, find)
            photos.missing.append(f"{name!r} ({path}, line {line}){hint}")
            continue
        photos.names[line] = found
        if found != written:
            respelled.append(f"{cell!r} on line {line} is {found!r}")
    if respelled:
        photos.notes.append(f"{len(respelled)} photos are found under another spelling of their name: {respelled[0]}")
    return photos


def is_address(cell: str) -> bool:
    return bool(ADDRESS.fullmatch(cell.strip()) or WINDOWS.fullmatch(cell.strip()))


def inside(name: str, folder: Path) -> str | None:
    """Return a name as a normalised path relative to the folder; None if it leads out of it."""
    name = posixpath.normpath(name)
    if name.startswith("/"):
        bases = [base for base in (folder.absolute(), folder.resolve()) if Path(name).is_relative_to(base)]
        return Path(name).relative_to(bases[0]).as_posix() if bases else None
    return None if name.split("/")[0] == ".." else name


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def folded(name: str) -> str:
    return one_line(name).casefold()


class Finder:
    """Find a file below a folder by the text of a cell; each folder is listed once, and only if it is needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listings: dict[tuple[str, Callable], dict[str, list[str]]] = {}

    def __call__(self, cell: str) -> str | None:
        """Return the file that a cell names as written, or else the only one that it names in another spelling:
        backslashes, percent signs, blanks around it, Unicode normal form, letter case. None if there is not just one.
        """
        written = cell.strip().removeprefix("file://")
        if (name := inside(written, self.folder)) and self.is_file(name):
            return name
        texts = [text for raw in (written, cell, unquote(written)) for text in (raw, raw.replace("\\", "/"))]
        names = list(dict.fromkeys(name for text in texts if (name := inside(text, self.folder))))
        if existing := next((name for name in names if self.is_file(name)), None):
            return existing
        for form in (composed, folded):
            found = {match for name in names for match in self.matches(name, form)}
            if found:
                return found.pop() if len(found) == 1 else None
        return None

    def is_file(self, name: str) -> bool:
        return os.path.isfile(os.path.join(self.folder, name))

    def matches(self, name: str, form: Callable[[str], str], folder: str = "") -> Iterator[str]:
        """Yield the files whose path is equal to `name` in a form that ignores the spelling."""
        first, _, rest = name.partition("/")
        for entry in self.entries(folder, form).get(form(first), ()):
            path = posixpath.join(folder, entry)
            if rest:
                yield from self.matches(rest, form, path)
            elif self.is_file(path):
                yield path

    def entries(self, folder: str, form: Callable[[str], str]) -> dict[str, list[str]]:
        """Return the names in a folder by their form."""
        key = folder, form
        if key not in self.listings:
            self.listings[key] = {}
            for name in self.list(folder):
                self.listings[key].setdefault(form(name), []).append(name)
        return self.listings[key]

    def list(self, folder: str) -> Iterable[str]:
        try:
            return sorted(os.listdir(self.folder / folder))
        except OSError:
            return ()


def describe(cell: str, find: Finder) -> str:
    """Say why a photo may be missing: the end of a sentence, empty if nothing is known."""
    if ADDRESS.fullmatch(cell.strip()):
        return ", which is an address: download the photos first and name the files in the table"
    if WINDOWS.fullmatch(cell.strip()):
        return ", which is a path on a Windows drive: name the photos relative to the table's folder"
    if similar := find_similar(cell, find):
        return f"; there is {similar!r}: name the photos with their folder and extension"
    return ""


def find_similar(cell: str, find: Finder) -> str | None:
    """Return a file in the table's folder, or in a folder of it, whose name differs in folder or extension only."""
    name = PurePosixPath(cell.strip().replace("\\", "/")).name
    stems = {folded(name), folded(PurePosixPath(name).stem)} - {""}
    for folder in ("", *find.list("")):
        for entry in find.list(folder):
            path = posixpath.join(folder, entry)
            if {folded(entry), folded(PurePosixPath(entry).stem)} & stems and find.is_file(path):
                return path
    return None
