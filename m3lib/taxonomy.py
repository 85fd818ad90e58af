"""Attributes (sleeve length, ...), their classes (short, long, ...), and the class ids that count through them."""

import json
import re
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import accumulate
from pathlib import Path

import numpy as np

from m3lib.errors import InputError, shown

# Unicode's "default ignorable" characters except the two joiners: zero-width blanks, soft hyphens, variation selectors,
# marks of writing direction, fillers, tags
INVISIBLE = re.compile(
    r"[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
JOINABLE = r"[\u0300-\u200b\u2010-\U0010ffff]"  # no Latin letter
LOOSE_JOINER = re.compile(rf"(?<!{JOINABLE})[\u200c\u200d]+|[\u200c\u200d]+(?!{JOINABLE}|[\u200c\u200d])")
BLANK_BRAILLE = "\u2800"  # often used as a blank that programs do not trim


@dataclass(frozen=True)
class Attribute:
    """An attribute and its classes. multi: whether one image may have several of them."""

    name: str
    classes: tuple[str, ...]
    multi: bool = False


@dataclass(frozen=True)
class Taxonomy:
    """N attributes with M classes in total; class ids 0 to M - 1 count through the attributes in order."""

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        if not names or len(set(names)) < len(names):
            raise InputError(f"the taxonomy needs one or more attributes with different names, got {names}")
        for attribute in self.attributes:
            if len(attribute.classes) < 2 or len(set(attribute.classes)) < len(attribute.classes):
                problem = f"attribute {attribute.name!r} needs at least two different classes"
                raise InputError(f"{problem}, got {list(attribute.classes)}; leave this attribute out")

    @cached_property
    def names(self) -> list[str]:
        return [attribute.name for attribute in self.attributes]

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N + 1,) int: attribute n has the class ids offsets[n] to offsets[n + 1] - 1."""
        return np.cumsum([0] + [len(attribute.classes) for attribute in self.attributes])

    @cached_property
    def attribute_of_class(self) -> np.ndarray:
        """(M,) int: the attribute that each class id belongs to."""
        return np.repeat(np.arange(len(self.attributes)), np.diff(self.offsets))

    @property
    def num_attributes(self) -> int:
        return len(self.attributes)

    @property
    def num_classes(self) -> int:
        return int(self.offsets[-1])

    def classes_of(self, attribute: int) -> slice:
        """Return the class ids of one attribute as a slice."""
        return slice(int(self.offsets[attribute]), int(self.offsets[attribute + 1]))

    def class_name(self, class_id: int) -> str:
        attribute = int(self.attribute_of_class[class_id])
        return self.attributes[attribute].classes[class_id - int(self.offsets[attribute])]

    def full_name(self, class_id: int) -> str:
        """Return `attribute: class`, the form that train.held_out and the tables use."""
        return f"{self.names[self.attribute_of_class[class_id]]}: {self.class_name(class_id)}"

    def class_id(self, attribute: str, class_: str) -> int:
        """Return the id of a class by its names; raises InputError with the nearest names if it does not exist."""
        n = self.names.index(nearest(attribute, self.names, "attribute"))
        classes = self.attributes[n].classes
        return int(self.offsets[n]) + classes.index(nearest(class_, classes, f"class of {attribute!r}"))

    def class_ids(self, full_name: str) -> list[int]:
        """Return the classes with a full name: one, or two if the names of two attributes make it ambiguous.

        An attribute's name may hold ": " too. Raises InputError with the nearest names if there is no such class.
        """
        if ids := [m for m in range(self.num_classes) if self.full_name(m) == full_name]:
            return ids
        begun = [name for name in self.names if full_name.startswith(f"{name}: ")]
        attribute = max(begun, key=len, default=full_name.partition(": ")[0])
        return [self.class_id(attribute, full_name[len(attribute) + 2 :])]

    def save(self, path: Path) -> None:
        records = [{"name": a.name, "multi": a.multi, "classes": list(a.classes)} for a in self.attributes]
        text = json.dumps({"attributes": records}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Taxonomy":
        """Read a file that `save` wrote; raises OSError, ValueError, KeyError, TypeError or InputError for another."""
        records = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        for r in records:
            if not all(isinstance(text, str) for text in (r["name"], *r["classes"])) or type(r["multi"]) is not bool:
                raise TypeError(f"an attribute is {r!r}")
        return cls(tuple(Attribute(r["name"], tuple(r["classes"]), r["multi"]) for r in records))


def one_line(text: str) -> str:
    """Return a name in NFC on one line, without control characters and characters that are never visible.

    A joiner (U+200C, U+200D) between two letters of a script that joins them, or between two emoji, is kept.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    plain = (" " if c == BLANK_BRAILLE or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    visible = LOOSE_JOINER.sub("", INVISIBLE.sub("", "".join(plain)))
    return " ".join(unicodedata.normalize("NFC", visible).split())


def has_invisible(text: str) -> bool:
    """Return whether `one_line` removes a character of a text that can't be seen."""
    return not text.isascii() and bool(INVISIBLE.search(text) or LOOSE_JOINER.search(text))


def caption(text: str, longest: int = 40) -> str:
    """Return a name for a figure, with `$` escaped, since matplotlib reads `$...$` as a formula.

    A name wider than `longest` letters is shortened; a Chinese, Japanese or Korean character is as wide as two.
    """
    widths = list(accumulate(1 + (unicodedata.east_asian_width(character) in "WF") for character in text))
    if widths[-1:] > [longest]:
        text = text[: sum(width < longest for width in widths)] + "…"
    return text.replace("$", r"\$")


def nearest(name: str, known: list[str] | tuple[str, ...], what: str) -> str:
    """Return `name` if it is one of the known names; otherwise raise InputError with the closest ones."""
    if isinstance(name, str) and name in known:
        return name
    raise InputError(f"unknown {what} {shown(name)}; {did_you_mean(str(name), known)}")


def did_you_mean(name: str, known: list | tuple) -> str:
    """Return "did you mean ...?" with the closest known names, or with the first dozen if none is close.

    known: texts, or what else a YAML file has as keys.
    """
    known = [str(key) for key in known]
    close = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:12]
    return f"did you mean {', '.join(map(repr, close))}?"
