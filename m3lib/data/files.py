"""Files: write one completely or not at all, compute digests, check the room on the disk."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from m3lib.errors import InputError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAFETENSORS_NAMES = {"int64": "I64", "float16": "F16", "float32": "F32"}  # numpy's name of a type: the format's


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, which replaces `path` if the block succeeds and is removed if it fails.

    Readers of `path` therefore never see half a file. Creates missing folders. Raises InputError if the disk is full.
    """
    temporary = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        raise InputError(f"the disk of {path.parent} is full: free some space, then run again") from None
    finally:
        temporary.unlink(missing_ok=True)


def digest(*items: Path | bytes | str) -> str:
    """Return the SHA-256, in hexadecimal, of concatenated items: the bytes of a path's file, bytes, or text."""
    sha = hashlib.sha256()
    for item in items:
        if isinstance(item, Path):
            with item.open("rb") as file:
                hashlib.file_digest(file, lambda: sha)
        else:
            sha.update(item.encode() if isinstance(item, str) else item)
    return sha.hexdigest()


def require_space(folder: Path, needed: float, what: str, advice: str) -> None:
    """Raise InputError, "`what` 3.1 GB, but ...: `advice`", unless a folder's disk has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(f"{what} {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {folder}: {advice}")


def write_tensors(path: Path, rows: int, blocks: Iterable[dict[str, np.ndarray]]) -> None:
    """Write a safetensors file whose tensors arrive in blocks of rows; memory holds one block at a time.

    Each block maps the name of every tensor to its next rows; `rows` counts the rows of all blocks. The file has the
    bytes that `safetensors.numpy.save_file` writes. Raises InputError if the disk has no room for the file.
    """
    with atomic(path) as temporary:
        tensors, start = {}, 0
        for block in blocks:
            tensors = tensors or allocate_tensors(temporary, rows, block)
            stop = start + len(next(iter(block.values())))
            for name, values in block.items():
                tensors[name][start:stop] = values
            start = stop


def allocate_tensors(path: Path, rows: int, block: dict[str, np.ndarray]) -> dict[str, np.memmap]:
    """Create a safetensors file at its full size and map its tensors, which have the types and shapes of a block."""
    header, end = {}, 0
    for name in sorted(block, key=lambda name: (-block[name].itemsize, name)):  # the order that save_file uses
        shape = (rows, *block[name].shape[1:])
        start, end = end, end + math.prod(shape) * block[name].itemsize
        dtype = SAFETENSORS_NAMES[block[name].dtype.name]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, 8 + len(text) + end)  # writing to mapped memory can't report a full disk
    return {
        name: np.memmap(path, block[name].dtype, "r+", 8 + len(text) + entry["data_offsets"][0], entry["shape"])
        for name, entry in header.items()
    }
