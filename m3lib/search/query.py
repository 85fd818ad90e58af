"""What a person may give to a search: an image in many forms, names of classes, a number of results."""

import io
import operator
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from m3lib.errors import InputError, shown
from m3lib.prepare import photos

PATH = re.compile(rb"[^\0-\x1f<>{}]{1,4096}\.[A-Za-z]{3,4}")  # bytes that are no photo, but the path of one

# A file's path; the name or row in the manifest of an image of the index; a file's bytes; an open file, also one that
# can't seek; an image; (H, W, 3) uint8.
Query = str | os.PathLike | int | bytes | BinaryIO | Image.Image | np.ndarray


def decode(image: Query) -> np.ndarray:
    """(h, w, 3) uint8 of a file, its bytes, a PIL image or an array; raises InputError if it can't be read as one."""
    if isinstance(image, str | os.PathLike):
        if not os.path.isfile(image):
            raise InputError(
                f"{os.fspath(image)!r} is neither a photo that exists nor the name of an image of the index"
            )
        return photos.decode(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        if PATH.fullmatch(image):
            raise InputError(f"the bytes given are the name {os.fsdecode(bytes(image))!r}: give a path as text")
        return photos.decode(io.BytesIO(image), f"the {len(image)} bytes given")
    if hasattr(image, "read") and not isinstance(image, Image.Image):
        name = getattr(image, "name", None)  # of a temporary file: a number or None
        return photos.decode(io.BytesIO(content(image)), name if isinstance(name, str) else "the open file")
    try:
        return photos.to_array(image if isinstance(image, Image.Image) else from_array(image))
    except Exception as error:  # PIL decodes pixels late, and raises any exception on damaged files
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        advice = "give a file, its bytes, a PIL image or an (H, W, 3) uint8 array"
        raise InputError(f"the image can't be read ({reason}): {advice}") from None


def content(file: BinaryIO) -> bytes:
    """Return all bytes of an open file, from its beginning if it can seek; raises InputError if there are none."""
    try:
        with suppress(OSError, AttributeError):
            file.seek(0)
        return bytes(file.read())
    except Exception as error:  # it is closed, or gives text
        raise InputError(f"the open file can't be read ({error}): open it with mode 'rb'") from None


def from_array(values: Any) -> Image.Image:
    """Return an array, or what numpy can make one of, as an image: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA."""
    array = np.asarray(values)
    shape, channels = array.shape, array.shape[2:] or (1,)
    if array.dtype != np.uint8 or len(shape) not in (2, 3) or channels[0] not in (1, 3, 4) or not array.size:
        raise InputError(f"{type(values).__name__} of shape {shape} and type {array.dtype}")
    return Image.fromarray(array[:, :, 0] if shape[2:] == (1,) else np.ascontiguousarray(array))


def count(k: Any, size: int) -> int:
    """Return the number of results as an int; raises InputError unless it is a whole number from 1 to size."""
    try:
        if not isinstance(k, bool) and 1 <= operator.index(k) <= size:
            return operator.index(k)
    except TypeError:
        pass
    raise InputError(f"k is {shown(k)}, but the index holds {size} images: use a whole number from 1 to {size}")


def class_names(classes: str | Iterable[str] | None) -> list[str]:
    """Return one or several names as a list without repetitions; raises InputError for what is no text."""
    if isinstance(classes, set | frozenset):
        classes = sorted(classes, key=str)
    elif isinstance(classes, str) or classes is None:
        classes = [classes] if classes else []
    try:
        return list(dict.fromkeys(classes))
    except TypeError:
        raise InputError(f"classes is {shown(classes)}: give the name of a class, or a list of names") from None
