"""Digests of the files of a folder, kept between runs: a file that has not changed since is not read again.

A digest is a BLAKE2b of 16 bytes, in hexadecimal. It decides the split of a photo, so another hash moves all photos.

A digest is kept with the file's size, times and inode. Anything that writes to a file sets the time of its last change
(ctime), also a program that restores the time of modification. A change within the resolution of that time can't be
seen, so the digest of a file that was changed just now is not kept.
"""

import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

from tqdm import tqdm

from m3lib.config import data_path
from m3lib.data.files import digest

KEPT = os.path.join("data", "work", "contents")  # in the original repository, for all experiments
SETTLED = 2.0  # seconds since a file's last change after which its digest is kept
READERS = 8  # threads: most of the time goes into waiting for the disk

Entry = tuple[list[int], str]  # a file's `state` and digest


def digests(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the digest of each named file of a folder, "" for one that can't be read; keep them in the folder KEPT.

    Several processes may use KEPT at once. It may be lost or damaged: then every file is read again.
    """
    started, store = time.time(), data_path(KEPT) / f"{digest(os.fsencode(folder.resolve()))[:16]}-blake2b.json"
    names, before = list(names), read(store)
    states = {name: state_of(os.path.join(folder, name)) for name in names}
    found = {name: before[name] for name, state in states.items() if name in before and before[name][0] == state}
    changed = [name for name, state in states.items() if state and name not in found]
    with ThreadPoolExecutor(READERS) as pool:
        texts = tqdm(pool.map(lambda name: digest_of(folder / name), changed), "photos", len(changed), delay=5)
        found |= {name: (states[name], text) for name, text in zip(changed, texts, strict=True) if text}
    settled = {name: entry for name, entry in found.items() if started - entry[0][0] / 1e9 > SETTLED}
    others = {name: entry for name, entry in before.items() if name not in states}  # of another table
    if settled | others != before:
        write(store, settled | {name: entry for name, entry in others.items() if (folder / name).exists()})
    return [found[name][1] if name in found else "" for name in names]


def state_of(path: str) -> list[int]:
    """Return what changes with a file: ctime and mtime in nanoseconds, size in bytes, inode, device; [] if no file."""
    try:
        state = os.stat(path)
        times = [state.st_ctime_ns, state.st_mtime_ns]
        return [*times, state.st_size, state.st_ino, state.st_dev] if stat.S_ISREG(state.st_mode) else []
    except (OSError, ValueError):  # ValueError: no file system accepts the name
        return []


def digest_of(path: Path) -> str:
    """Return the digest of a file's bytes, "" if it can't be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).hexdigest()
    except OSError:
        return ""


def read(store: Path) -> dict[str, Entry]:
    """Return the kept entries by name; none if the file is missing or damaged."""
    try:
        return {name: (state, text) for name, (state, text) in json.loads(store.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def write(store: Path, entries: dict[str, Entry]) -> None:
    """Replace the kept entries; without a word if that is impossible, since they only save time."""
    with suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=store.parent) as own:  # of its own for each process
            path = Path(own, store.name)
            path.write_text(json.dumps(entries))
            os.replace(path, store)
