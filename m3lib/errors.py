"""The one exception meant for a person to read, and how a value stands in its sentence."""

import reprlib
from typing import Any

LONGEST = 1200  # characters
HUGE = 2**63  # no setting's number comes near it


class InputError(Exception):
    """Something a person gave is wrong: one sentence that says what, where, and what to do.

    The notebook runner prints this sentence alone, without a traceback. What a terminal would act on (ends of lines,
    escape sequences, marks that turn the direction of writing), say in a file's name, is written out; a very long
    sentence keeps its beginning and its end.
    """

    def __init__(self, sentence: str) -> None:
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)
        super().__init__(text if len(text) <= LONGEST else f"{text[: LONGEST * 2 // 3]} ... {text[-LONGEST // 3 :]}")


def shown(value: Any) -> str:
    """A value in a sentence: what is nested or long is cut, or a few anchors in YAML could write gigabytes."""
    if type(value) is int and abs(value) >= HUGE:
        return f"a number of {value.bit_length()} bits"
    cut = reprlib.Repr()
    cut.maxstring = cut.maxother = 80
    cut.maxlevel = 2
    return cut.repr(value)
