"""Attributes (what is asked about) and their classes (what it can be)."""

import json
import unicodedata
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np

from m3lib.errors import InputError


@dataclass(frozen=True)
class Attribute:
    """One question about a photo, such as sleeve length, and the answers it knows.

    multi: whether one photo may carry several of the classes.
    """

    name: str
    classes: tuple[str, ...]
    multi: bool = False


@dataclass(frozen=True)
class Taxonomy:
    """N attributes with M classes in all; a class id counts through the attributes in order, 0 to M - 1."""

    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        names = [attribute.name for attribute in self.attributes]
        if not names or len(set(names)) < len(names):
            raise InputError(f"the taxonomy needs one or more attributes with different names, got {names}")
        for attribute in self.attributes:
            if len(attribute.classes) < 2 or len(set(attribute.classes)) < len(attribute.classes):
                raise InputError(
                    f"attribute {attribute.name!r} needs at least two different classes to be told apart, "
                    f"got {list(attribute.classes)}; leave this attribute out"
                )

    @cached_property
    def names(self) -> list[str]:
        return [attribute.name for attribute in self.attributes]

    @cached_property
    def offsets(self) -> np.ndarray:
        """(N + 1,) int: attribute n owns the class ids offsets[n] to offsets[n + 1] - 1."""
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
        """The class ids of one attribute, as a slice."""
        return slice(int(self.offsets[attribute]), int(self.offsets[attribute + 1]))

    def class_name(self, class_id: int) -> str:
        attribute = int(self.attribute_of_class[class_id])
        return self.attributes[attribute].classes[class_id - int(self.offsets[attribute])]

    def full_name(self, class_id: int) -> str:
        """`attribute: class`, as train.held_out and the tables write it."""
        return f"{self.names[self.attribute_of_class[class_id]]}: {self.class_name(class_id)}"

    def class_id(self, attribute: str, class_: str) -> int:
        """The id of a class by its names; raises InputError with the nearest name when there is none."""
        n = self.names.index(nearest(attribute, self.names, "attribute"))
        classes = self.attributes[n].classes
        return int(self.offsets[n]) + classes.index(nearest(class_, classes, f"class of {attribute!r}"))

    def save(self, path: Path) -> None:
        records = [{"name": a.name, "multi": a.multi, "classes": list(a.classes)} for a in self.attributes]
        text = json.dumps({"attributes": records}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "Taxonomy":
        """Raises OSError, ValueError, KeyError or TypeError for a file that `save` did not write, or InputError."""
        records = json.loads(path.read_text(encoding="utf-8"))["attributes"]
        for r in records:
            if not all(isinstance(text, str) for text in (r["name"], *r["classes"])) or type(r["multi"]) is not bool:
                raise TypeError(f"an attribute is {r!r}")
        return cls(tuple(Attribute(r["name"], tuple(r["classes"]), r["multi"]) for r in records))


def one_line(text: str) -> str:
    """A name as it may be printed and drawn: NFC, no ends of lines, control characters or turns of direction."""
    bidi = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    kept = (" " if c in bidi or unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in text)
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())


def caption(text: str, longest: int = 40) -> str:
    """A name in a figure: cut where it is long, `$` escaped, since matplotlib would read formulas between two."""
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")


def nearest(name: str, known: list[str] | tuple[str, ...], what: str) -> str:
    """`name` if it is among the known ones; otherwise an InputError that names the closest."""
    if name in known:
        return name
    raise InputError(f"unknown {what} {name!r}; {did_you_mean(name, known)}")


def did_you_mean(name: str, known: list[str] | tuple[str, ...]) -> str:
    """The known names that are closest, or the first dozen when none is close."""
    close = get_close_matches(name, known, n=3, cutoff=0.5) or sorted(known)[:12]
    return f"did you mean {', '.join(map(repr, close))}?"
