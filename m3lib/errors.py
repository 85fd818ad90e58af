"""InputError, which a person reads; how a command ends with it; short representations of values for its sentences."""

import reprlib
import sys
from collections.abc import Callable
from typing import Any

MAX_LENGTH = 1200  # characters of one sentence
MAX_FAULTS = 30  # listed in one message
HUGE = 2**63


class InputError(Exception):
    """Something in the input is wrong: a sentence that says what, where, and what to do.

    `InputError("params.yaml", fault)` reads "params.yaml, fault"; with several faults each gets its own line, up to
    MAX_FAULTS. The notebook runner prints this text without a traceback. Control characters, which a terminal would
    act on (a file name may hold them), are escaped, and very long sentences are shortened in the middle.
    """

    def __init__(self, sentence: str, *faults: str, advice: str = "") -> None:
        self.faults = faults
        ending = f"; {advice}" if advice else ""
        lines = [f"{sentence}, {faults[0]}{ending}" if faults else f"{sentence}{ending}"]
        if len(faults) > 1:
            more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
            lines = [f"{sentence} has {len(faults)} faults{ending}:", *faults[:MAX_FAULTS], *more]
        super().__init__("\n  ".join(map(printable, lines)))


def exit_status(command: Callable[[], int | None]) -> int:
    """Run a command; return its status or 0, or 1 after printing an InputError or OSError as a sentence."""
    try:
        return command() or 0
    except InputError as error:
        sentence = str(error)
    except OSError as error:
        sentence = printable(f"{error.filename or 'data'}: {error.strerror or error}")
    print(f"error: {sentence}", file=sys.stderr)
    return 1


def printable(text: str) -> str:
    """Escape what is not printable; shorten what is longer than MAX_LENGTH."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) <= MAX_LENGTH:
        return text
    return f"{text[: MAX_LENGTH * 2 // 3]} ... {text[-MAX_LENGTH // 3 :]}"


def shown(value: Any) -> str:
    """repr of a value, shortened for a sentence: a few YAML anchors can expand to gigabytes."""
    if type(value) is int and abs(value) >= HUGE:
        return f"a number of {value.bit_length()} bits"
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    short.maxlevel = 2
    return short.repr(value)
