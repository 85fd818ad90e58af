"""A safetensors file made at its full size and filled from the front: held in memory once at most, and resumable.

Beside `name.safetensors` lie, until it is whole, `name.partial`, the file itself, and `name.journal`, which says whose
it is and how many of its rows are on the disk.
"""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np

from m3lib.errors import InputError

DTYPES = {"int64": "I64", "float16": "F16", "float32": "F32"}  # numpy's names, and the format's
SAVE_EVERY = 2.0  # seconds of work that a cut may cost


class Stream:
    """Tensors of the same number of rows; `done` of them are written. A file of another fingerprint starts over."""

    def __init__(self, path: Path, fingerprint: str, total: int):
        self.path, self.fingerprint, self.total = path, fingerprint, total
        self.part, self.journal = path.with_suffix(".partial"), path.with_suffix(".journal")
        self.arrays: dict[str, np.memmap] = {}
        self.done, self.saved = 0, time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            told = json.loads(self.journal.read_text())
            if told["fingerprint"] == fingerprint:
                self.map()
                self.done = told["done"]
        except (OSError, ValueError, KeyError, TypeError):
            self.arrays = {}

    def add(self, parts: dict[str, np.ndarray]) -> None:
        """The next rows of every tensor; the first ones say what the tensors are."""
        if not self.arrays:
            self.make(parts)
        stop = self.done + len(next(iter(parts.values())))
        for name, part in parts.items():
            self.arrays[name][self.done : stop] = part
        self.done = stop
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def make(self, like: dict[str, np.ndarray]) -> None:
        """The file at its full size, without its numbers; raises InputError if the disk has no room for it."""
        self.journal.unlink(missing_ok=True)  # first: it must never speak of another file's rows
        header, offset = {}, 0
        for name in sorted(like, key=lambda name: (-like[name].itemsize, name)):  # the format's own order
            shape = (self.total, *like[name].shape[1:])
            size = int(np.prod(shape)) * like[name].itemsize
            dtype = DTYPES[like[name].dtype.name]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (offset, offset + size)}
            offset += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        try:
            with self.part.open("wb") as file:
                file.write(len(text).to_bytes(8, "little") + text)
                file.flush()
                os.posix_fallocate(file.fileno(), 0, 8 + len(text) + offset)
        except OSError as error:
            self.part.unlink(missing_ok=True)
            free = shutil.disk_usage(self.part.parent).free
            raise InputError(
                f"{self.path} needs {offset / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free ({error.strerror}): free "
                "some space, or make model.class_embedding smaller (params.yaml)"
            ) from None
        self.map()

    def map(self) -> None:
        """Open the tensors of the partial file; raises OSError or ValueError if it is cut."""
        with self.part.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        names = {short: name for name, short in DTYPES.items()}
        for name, told in header.items():
            start = 8 + length + told["data_offsets"][0]
            self.arrays[name] = np.memmap(self.part, names[told["dtype"]], "r+", start, tuple(told["shape"]))

    def save(self) -> None:
        """The rows to the disk, then the journal, never the other way round."""
        for array in self.arrays.values():
            array.flush()
        new = self.journal.with_suffix(".journal.new")
        new.write_text(json.dumps({"fingerprint": self.fingerprint, "done": self.done}))
        os.replace(new, self.journal)
        self.saved = time.monotonic()

    def finish(self) -> None:
        """Put the whole file in place."""
        self.save()
        self.arrays = {}
        os.replace(self.part, self.path)
        self.journal.unlink()
