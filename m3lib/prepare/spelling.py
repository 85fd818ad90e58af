"""Read classes as people write them: lists in a cell, words for an unknown label, several spellings of one class."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain

import pandas as pd

from m3lib.config import Csv
from m3lib.errors import InputError
from m3lib.taxonomy import INVISIBLE, did_you_mean, has_invisible, one_line

LISTED = 8  # classes named in a note
OTHER_SEPARATORS = ";,/+&"
ITEM = re.compile(r"""'[^']*'|"[^"]*"|[^\s,'"\[\]][^,'"\[\]]*""")
MARKS = str.maketrans("\u2010\u2011\u2012\u2013\u2014\u2212\u2018\u2019\u02bc", "------'''", "\u200c\u200d")
LETTER, DIGIT = r"[^\W\d_]", r"\d"
JOINED = re.compile(  # what may be written as a blank, a hyphen or an underscore; never the sign of a number
    rf"(?<={LETTER})[\s_-]+(?={LETTER})|(?<={LETTER})_(?={DIGIT})|(?<={DIGIT})[\s_-]+(?={LETTER})"
)
TIGHT = re.compile(r"\s*([/.])\s*")
OUTER = " .#'\"`()<>[]{}\u201c\u201d\u201e\u00ab\u00bb\u2039\u203a"  # around a word for an unknown label
NUMBER = re.compile(r"(-?\d+)[.,](\d{1,2})")  # three digits behind a comma may be thousands

Values = list[list[str]]  # of one attribute: the classes of each row in order, none if unknown


def read_values(column: pd.Series, settings: Csv) -> tuple[Values, list[str]]:
    """Return the classes of each cell of a column, and notes on how they were read."""
    name, written, lists = str(column.name), {}, []
    unknown = missing_keys(settings)
    cells = Counter(column)  # few cells differ in most columns
    for cell in cells:
        items = list_items(cell)
        lists += [] if items is None else [cell]
        whole = items is None and missing_key(cell) in unknown  # `n/a` has one part, even if the separator is `/`
        written[cell] = [cell] if whole else cell.split(settings.separator) if items is None else items
    rows = {cell: {one_line(part) for part in parts} - {""} for cell, parts in written.items()}
    counts, hidden = Counter(), Counter()
    for cell, times in cells.items():
        counts.update(dict.fromkeys(rows[cell], times))
        hidden.update({part.strip(): times for part in written[cell] if has_invisible(part)})
    class_of, notes = read_classes(name, counts, settings)
    if hidden:
        notes.insert(0, f"{name}: characters that can't be seen are removed: {listed(hidden, hidden)}")
    if lists:
        several = sum(cells[cell] for cell in lists)
        notes.insert(0, f"{name}: {several} cells such as {lists[0]!r} are read as lists")
    classes = {cell: sorted({class_of[part] for part in parts} - {""}) for cell, parts in rows.items()}
    return [classes[cell] for cell in column], notes


def list_items(cell: str) -> list[str] | None:
    """Return the items of a cell that is a list, such as ['red', "white"] or [red, white]; None for other cells.

    In round brackets and braces, only quoted items make a list.
    """
    cell = cell.strip()
    if cell[:1] + cell[-1:] not in ("[]", "()", "{}") or ITEM.sub("", cell[1:-1]).strip(", \t\r\n"):
        return None
    items = ITEM.findall(cell[1:-1])
    if cell[0] != "[" and not (items and all(item[0] in "'\"" for item in items)):
        return None
    return [item[1:-1] if item[0] in "'\"" else item for item in items]


def read_classes(name: str, counts: Counter[str], settings: Csv) -> tuple[dict[str, str], list[str]]:
    """Return the class of each spelling of an attribute, '' if it means unknown, and notes.

    counts: images per spelling.
    """
    class_of = rename(name, counts, settings)
    words = missing_keys(settings)
    unknown = [text for text in counts if text not in class_of and missing_key(text) in words]
    class_of |= dict.fromkeys(unknown, "")
    notes = []
    if unknown:
        notes.append(f"{name}: read as unknown (csv.missing): {listed(unknown, counts)}")
    for text in counts:
        class_of.setdefault(text, text)
    if settings.spellings == "merge":
        class_of, merged = merge(class_of, counts, set(renames(name, settings).values()))
        notes += [f"{name}: spellings of one class are merged (csv.spellings): {merged}"] if merged else []
    named = Counter({text: n for text, n in counts.items() if text not in unknown})
    return class_of, notes + separator_notes(name, named, settings)


def missing_keys(settings: Csv) -> set[str]:
    return {missing_key(word) for word in settings.missing}


@lru_cache(2**16)
def missing_key(text: str) -> str:
    """Return what all spellings of a word for an unknown label have in common: `N/A`, `n / a`, `#N/A`, `"<n/a>."`.

    A text with a digit keeps its signs, which may be those of a number.
    """
    key = TIGHT.sub(r"\1", spelling_key(one_line(text)))
    if not any(map(str.isdigit, key)):
        key = key.strip(OUTER) or key
    return key if any(map(str.isalnum, key)) or len(set(key)) > 1 else key[:1]


def renames(name: str, settings: Csv) -> dict[str, str]:
    """Return what csv.rename says of an attribute: the new class of each old one, '' if it means unknown."""
    given = {one_line(column): classes for column, classes in settings.rename.items()}.get(name, {})
    return {one_line(old): one_line(new) for old, new in given.items()}


def rename(name: str, counts: Counter[str], settings: Csv) -> dict[str, str]:
    """Return the class of each spelling that csv.rename names, exactly or, if spellings are merged, by another one.

    Raises InputError with similar names for a class that the column does not have.
    """
    form, spellings, class_of = spelling_key if settings.spellings == "merge" else str, defaultdict(list), {}
    for text in counts:
        spellings[form(text)].append(text)
    given = renames(name, settings)
    for old, new in given.items():
        if form(old) not in spellings:
            advice = did_you_mean(old, list(counts))
            raise InputError(f"params.yaml, csv.rename: the column {name!r} has no class {old!r}; {advice}")
        class_of |= dict.fromkeys(spellings[form(old)], new)
    return class_of | {old: new for old, new in given.items() if old in counts}


@lru_cache(2**16)
def spelling_key(text: str) -> str:
    """Return what all spellings of a name have in common: `V neck` and `v-neck`, `38` and `38.0`, full-width letters.

    Numbers of another sign or value keep different keys.
    """
    plain = one_line(unicodedata.normalize("NFKC", text).casefold().translate(MARKS))
    if number := NUMBER.fullmatch(plain):
        return f"{number[1]}.{number[2]}".rstrip("0").rstrip(".")
    return JOINED.sub(" ", plain)


def merge(class_of: dict[str, str], counts: Counter[str], chosen: set[str]) -> tuple[dict[str, str], str]:
    """Map each spelling to the most frequent one of its class, or to one that was chosen; also describe the merges."""
    images: Counter[str] = Counter()
    for text, class_ in class_of.items():
        images[class_] += counts[text]
    groups = defaultdict(list)
    for class_ in sorted(images, key=lambda class_: (class_ not in chosen, -images[class_], class_)):
        groups[spelling_key(class_)].append(class_)
    several = [group for group in groups.values() if len(group) > 1]
    merged = "; ".join(listed(group, images) for group in several[:LISTED])
    more = f"; and {len(several) - LISTED} more" if len(several) > LISTED else ""
    return {text: groups[spelling_key(class_)][0] for text, class_ in class_of.items()}, merged + more


def listed(texts: Iterable[str], counts: Counter[str]) -> str:
    """Name texts with their number of images, the most frequent first; what can't be seen is escaped."""
    by_count = sorted(texts, key=lambda text: (-counts[text], text))
    shown = (INVISIBLE.sub(lambda match: ascii(match[0])[1:-1], repr(text)) for text in by_count[:LISTED])
    named = [f"{text} ({counts[original]})" for text, original in zip(shown, by_count, strict=False)]
    return ", ".join([*named, f"and {len(by_count) - LISTED} more"] if len(by_count) > LISTED else named)


def separator_notes(name: str, counts: Counter[str], settings: Csv) -> list[str]:
    """Return a note for each other separator that seems to divide cells into classes that occur elsewhere too."""
    notes, whole = [], {spelling_key(text) for text in counts}
    for symbol in OTHER_SEPARATORS:
        cells = {
            text: [spelling_key(part) for part in text.split(symbol) if part.strip()]
            for text in counts
            if symbol in text
        }
        cells = {text: parts for text, parts in cells.items() if len(parts) > 1}
        cells_with = Counter(chain.from_iterable(map(set, cells.values())))
        known = [
            part in whole or (cells_with[part] > 1 and any(map(str.isalpha, part)))
            for part in chain.from_iterable(cells.values())
        ]
        if sum(known) * 2 > len(known):
            images, example = sum(counts[text] for text in cells), max(cells, key=counts.get)
            advice = f"if they are several classes, set csv.separator to {symbol!r} (it is {settings.separator!r})"
            notes.append(f"{name}: {images} cells such as {example!r} may be divided by {symbol!r}; {advice}")
    return notes
