"""The image store of a prepared folder, raw or JPEG: made in steps that outlive a cut, read by memory map.

The files of either kind are described in `manifest`.
"""

import io
import json
import mmap
import os
import shutil
import time
from pathlib import Path
from typing import IO, NamedTuple, Self

import numpy as np
from PIL import Image

from m3lib.config import Images
from m3lib.data.files import require_space
from m3lib.errors import InputError

RAW = "images.npy"
JPEGS, INDEX = "images.bin", "images.idx.npy"
QUALITY = 95
JPEG_SHARE = 0.2  # of the raw size at most, as measured: 0.08 (enlarged photos) to 0.18 (busy ones)
SAVE_EVERY = 2.0  # seconds of work that a cut may cost


class Chunk(NamedTuple):
    """The pictures of the rows up to `stop`, encoded, one after the other; bad: a sentence on each row without one."""

    stop: int
    sizes: list[int]  # bytes of each picture
    data: bytes
    bad: dict[int, str]


def encode(picture: np.ndarray, kind: str) -> bytes:
    """(H, W, 3) uint8 as the store keeps it: 4:4:4, since halved colours would blur the edges of prints."""
    if kind == "raw":
        return picture.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def header(settings: Images, count: int) -> bytes:
    """What stands before the pictures; of one length for any count, because numpy leaves room for it."""
    if settings.store == "jpeg":
        return b""
    buffer = io.BytesIO()
    shape = (count, settings.height, settings.width, 3)
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


class Work:
    """A store in the making, taken up where an earlier run of the same fingerprint was cut off.

    `images.part` holds the pictures so far; `images.journal` says which of them are whole: first the fingerprint, then
    a line for every chunk, written when its pictures are on the disk. A run of another fingerprint starts over.
    As a context it saves on the way out, whatever the reason; only `finish` and `discard` remove the two files.
    """

    def __init__(self, folder: Path, fingerprint: str, settings: Images, total: int) -> None:
        self.part, self.journal = folder / "images.part", folder / "images.journal"
        self.settings, self.total = settings, total
        self.stop, self.sizes, self.bad = 0, [], {}  # rows done, bytes of each picture, sentences by row
        self.unsaved: list[str] = []
        self.saved = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        if not self.resume(fingerprint):
            self.restart(fingerprint)
        self.file, self.log = self.part.open("r+b"), self.journal.open("ab")
        self.file.seek(0, os.SEEK_END)

    def resume(self, fingerprint: str) -> bool:
        """Take up the two files if they are this run's, cut to what is whole."""
        if not (self.part.is_file() and self.journal.is_file()):
            return False
        first, *lines = self.journal.read_bytes().splitlines(keepends=True) or [b""]
        if first != f"{fingerprint}\n".encode():
            return False
        whole = [line for line in lines if line.endswith(b"\n")]  # only the last can be cut
        try:
            for line in whole:
                self.stop, sizes, bad = json.loads(line)
                self.sizes += sizes
                self.bad |= dict(bad)
            if min(self.sizes, default=0) < 0 or len(self.sizes) + len(self.bad) != self.stop <= self.total:
                return False
        except (ValueError, TypeError):  # damaged on the disk
            return False
        if self.part.stat().st_size < self.size():
            return False
        os.truncate(self.journal, len(first) + sum(map(len, whole)))
        os.truncate(self.part, self.size())
        return True

    def restart(self, fingerprint: str) -> None:
        self.stop, self.sizes, self.bad = 0, [], {}
        self.journal.unlink(missing_ok=True)  # first: it must never speak of another file's pictures
        self.part.write_bytes(header(self.settings, self.total))
        self.journal.write_text(f"{fingerprint}\n")

    def size(self) -> int:
        """Bytes of the file so far."""
        return len(header(self.settings, self.total)) + sum(self.sizes)

    def check_space(self) -> None:
        """Raise InputError unless the rest of the store fits on the disk, as far as can be told."""
        raw = self.total * self.settings.height * self.settings.width * 3
        whole = raw if self.settings.store == "raw" else JPEG_SHARE * raw
        about, jpeg = " up to", ""
        if self.settings.store == "raw":
            about, jpeg = "", f"set images.store to jpeg (at most {JPEG_SHARE * raw / 1e9:.1f} GB in all), "
        advice = f"{jpeg}make images.height and images.width smaller (params.yaml), or free some space"
        require_space(self.part.parent, whole - sum(self.sizes), f"the image store needs{about}", advice)

    def add(self, chunk: Chunk) -> None:
        self.file.write(chunk.data)
        self.stop = chunk.stop
        self.sizes += chunk.sizes
        self.bad |= chunk.bad
        self.unsaved.append(json.dumps([chunk.stop, chunk.sizes, list(chunk.bad.items())]))
        if time.monotonic() - self.saved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """The pictures to the disk, then the journal, never the other way round."""
        sync(self.file)
        lines = "".join(f"{line}\n" for line in self.unsaved)
        self.unsaved.clear()  # before they are written: Ctrl-C in between must not write them twice
        self.log.write(lines.encode())
        sync(self.log)
        self.saved = time.monotonic()

    def finish(self, folder: Path) -> None:
        """Put the store into the folder, in place of any other one."""
        self.save()
        self.file.seek(0)
        self.file.write(header(self.settings, len(self.sizes)))
        sync(self.file)
        self.close()
        for name in (RAW, INDEX, JPEGS):
            (folder / name).unlink(missing_ok=True)
        if self.settings.store == "raw":
            shutil.move(self.part, folder / RAW)
        else:
            shutil.move(self.part, folder / JPEGS)
            offsets = np.concatenate([[0], np.cumsum(self.sizes, dtype=np.int64)])
            np.save(folder / INDEX, offsets)
        self.journal.unlink()

    def discard(self) -> None:
        self.close()
        self.journal.unlink()
        self.part.unlink()

    def close(self) -> None:
        self.file.close()
        self.log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if not self.file.closed:
                self.save()
        finally:
            self.close()


def sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


class JpegStore:
    """The JPEG kind, indexed as the raw array is: [row] gives (H, W, 3) uint8, [rows] and [slice] (B, H, W, 3).

    Raises OSError or ValueError when the files of the folder are missing, cut, or don't belong together.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets = np.load(folder / INDEX, allow_pickle=False)  # (I + 1,) int64
        if self.offsets.ndim != 1 or self.offsets.dtype != np.int64 or len(self.offsets) < 2:
            raise ValueError(f"{INDEX} is no index")
        with (folder / JPEGS).open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self.offsets[0] != 0 or self.offsets[-1] != len(self.data) or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"{JPEGS} and {INDEX} don't belong together")
        self.rows, self.shape = np.arange(len(self.offsets) - 1), ()
        self.shape = (len(self.rows), *self[0].shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        rows = self.rows[key]  # numpy's own rules for negative, boolean and wrong indices
        if rows.ndim == 0:
            return self.decode(rows)
        pictures = np.empty((*rows.shape, *self.shape[1:]), np.uint8)
        flat = pictures.reshape(-1, *self.shape[1:])
        for i, row in enumerate(rows.ravel()):
            flat[i] = self.decode(row)
        return pictures

    def decode(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8; raises InputError when the file was damaged."""
        data = self.data[self.offsets[row] : self.offsets[row + 1]]
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                picture = np.asarray(image)
            if picture.shape[2:] != (3,) or (self.shape and picture.shape != self.shape[1:]):
                raise ValueError("of another size than the others")
            return picture
        except Exception:  # Pillow raises anything on damage
            raise InputError(
                f"picture {row} of {self.folder / JPEGS} is damaged; run `dvc repro --force prepare`"
            ) from None


def open_store(folder: Path) -> np.ndarray | JpegStore:
    """(I, H, W, 3) uint8 of either kind; raises OSError, EOFError or ValueError when files are missing or cut."""
    if (folder / JPEGS).exists():
        return JpegStore(folder)
    pictures = np.load(folder / RAW, mmap_mode="r", allow_pickle=False)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3:
        raise ValueError(f"{RAW} holds no pictures")
    return pictures
