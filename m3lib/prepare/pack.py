"""Pack the images of a source into one store, in finished shards: an interrupted run continues at the next shard.

Shards lie in the folder images-<fingerprint> of data/work. A shard is a `Header` as a line of JSON, then the signatures
of its images, then the images.
"""

import io
import json
import os
import pickle
import re
import shutil
import signal
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
from tqdm import tqdm

from m3lib.config import Images
from m3lib.data import store
from m3lib.data.files import atomic, digest, require_space
from m3lib.data.manifest import Source
from m3lib.errors import InputError
from m3lib.prepare import signatures
from m3lib.prepare.photos import fit

SHARD = 128  # images; one worker packs one shard at a time
JPEG_SHARE = 0.2  # upper bound of JPEG size / raw size; measured: 0.08 (enlarged photos) to 0.18 (detailed ones)
TOO_MANY = "{}, more than the share images.max_unreadable = {:g} in params.yaml allows{}"
LISTED = 5  # unreadable images named in the notes
KINDS = 8  # of unreadable images named in the error
NAMED = re.compile(r"(?:(['\"].*['\"]): )?(.*?)(?: \(.*)?", re.DOTALL)  # a photo's name, its problem, the detail

Load = Callable[[int], np.ndarray]


class Header(NamedTuple):
    """The first line of a shard: bytes of each image, and (row, problem) of each unreadable image."""

    sizes: list[int]
    bad: list[tuple[int, str]]


@dataclass(frozen=True)
class Subset:
    """Load image i of some rows of another loader."""

    load: Load
    rows: tuple[int, ...]

    def __call__(self, i: int) -> np.ndarray:
        return self.load(self.rows[i])


def pack(source: Source, folder: Path, settings: Images, workers: int | None = None) -> Source:
    """Write the image store into a folder; return the source with the rows that are in the store and their signatures.

    Images whose load raises InputError are left out and noted. Raises InputError if their share exceeds
    settings.max_unreadable, if the disk is too small, or if a worker process is killed.

    The store has the same bytes for any number of workers and interruptions.
    """
    state = fingerprint(source, settings, folder.parent / "inputs.json")
    total, work = len(source.manifest), folder.parent / "work" / f"images-{state[:16]}"
    for other in set(work.parent.glob("images-*")) - {work}:
        shutil.rmtree(other)
    work.mkdir(parents=True, exist_ok=True)
    check_space(work, settings, total)
    shards = {work / str(start): range(start, min(start + SHARD, total)) for start in range(0, total, SHARD)}
    headers = {path: read_header(path) for path in shards}
    missing = {path: rows for path, rows in shards.items() if headers[path] is None}
    bad = {row: problem for header in headers.values() if header for row, problem in header.bad}
    done = total - sum(map(len, missing.values()))
    bar = tqdm(total=total, initial=done, unit="image", desc="images")
    with bar, start_pool(source.load, settings, workers) as pool:
        for (path, rows), header in zip(missing.items(), pool.map(pack_shard, missing, missing.values()), strict=True):
            headers[path] = header
            bad |= dict(header.bad)
            bar.update(len(rows))
            if too_many(len(bad), total, settings.max_unreadable):
                break
    if too_many(len(bad), total, settings.max_unreadable):
        shutil.rmtree(work)  # the user will change the photos or the table
        raise InputError(
            TOO_MANY.format(f"{len(bad)} of {total} images can't be read", settings.max_unreadable, kinds(bad))
        )
    source = replace(leave_out(source, bad) if bad else source, signatures=merge(headers, folder, settings))
    shutil.rmtree(work)
    return source


def fingerprint(source: Source, settings: Images, inputs: Path) -> str:
    """Return a digest of what decides the pixels: loader, names, settings, code, and the photos' contents.

    inputs: the file in which the pipeline's first stage keeps a digest of the photos' contents.
    """
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True  # equal values give equal bytes, even if one is the same object twice and the other is not
    form = (settings.height, settings.width, settings.fit, settings.format)
    pickler.dump((source.load, tuple(source.manifest["image"]), form, PIL.__version__))
    code = sorted(Path(__file__).parent.rglob("*.py"))  # photos, this module, and every reader
    return digest(buffer.getvalue(), *code, Path(store.__file__), *[inputs] * inputs.is_file())


def check_space(work: Path, settings: Images, total: int) -> None:
    """Raise InputError unless the disk has room for the rest of the store."""
    raw = total * settings.height * settings.width * 3
    small = total * signatures.BYTES
    done = sum(path.stat().st_size for path in work.iterdir())
    advice = "make images.height and images.width smaller (params.yaml), or free some space"
    if settings.format == "jpeg":
        require_space(work, JPEG_SHARE * raw + small - done, "the image store needs up to", advice)
        return
    jpeg = f"set images.format to jpeg (at most {JPEG_SHARE * raw / 1e9:.1f} GB in all)"
    require_space(work, raw + small - done, "the image store needs", f"{jpeg}, {advice}")


@contextmanager
def start_pool(load: Load, settings: Images, workers: int | None) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes, by default one per CPU; each receives the loader once, not with every shard."""
    context = get_context("forkserver")  # forking a notebook's kernel would copy the locks of its threads
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers or len(os.sched_getaffinity(0)), context, start_worker, (load, settings))
    try:
        yield pool
    except BrokenProcessPool:
        advice = "free some memory or make the images smaller (params.yaml, images), then run again"
        problem = "a process that reads images was killed, most likely because memory ran out"
        raise InputError(f"{problem}; finished work is kept: {advice}") from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(load: Load, settings: Images) -> None:
    """Initialise a worker process."""
    global job
    job = load, settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=exit_with_parent, daemon=True).start()


def exit_with_parent() -> None:
    """End this worker when its parent was killed."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def pack_shard(path: Path, rows: range) -> Header:
    """In a worker process: load, fit, encode and write some rows."""
    load, settings = job
    signed, images, bad = [], [], []
    for row in rows:
        try:
            photo = load(row)
            images.append(store.encode(fit(photo, settings.height, settings.width, settings.fit), settings.format))
            signed.append(signatures.sign(photo).tobytes())
        except InputError as error:
            bad.append((row, str(error)))
    header = Header([len(image) for image in images], bad)
    with atomic(path) as temporary:
        temporary.write_bytes(b"\n".join([json.dumps(header).encode(), b"".join(signed + images)]))
    return header


def read_header(shard: Path) -> Header | None:
    """Return the header of a finished shard; None if the file is missing, or cut because the power failed."""
    try:
        with shard.open("rb") as file:
            header = Header(*json.loads(file.readline()))
            rest = sum(header.sizes) + len(header.sizes) * signatures.BYTES
            return header if file.tell() + rest == shard.stat().st_size else None
    except (OSError, ValueError, TypeError):
        return None


def merge(shards: dict[Path, Header], folder: Path, settings: Images) -> np.ndarray:
    """Join the shards to the files of the image store, which replace any other store of the folder.

    Returns the signatures (I, BYTES) uint8, mapped from a temporary file.
    Each shard is removed once it is copied, so that the disk need not hold everything twice.
    """
    for name in (store.RAW, store.INDEX, store.JPEGS):
        (folder / name).unlink(missing_ok=True)
    sizes = [size for header in shards.values() for size in header.sizes]
    name = store.JPEGS if settings.format == "jpeg" else store.RAW
    with atomic(folder / name) as temporary, temporary.open("wb") as file, tempfile.TemporaryFile(dir=folder) as small:
        if settings.format == "raw":
            shape = (len(sizes), settings.height, settings.width, 3)
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for shard, header in shards.items():
            with shard.open("rb") as images:
                images.readline()
                small.write(images.read(len(header.sizes) * signatures.BYTES))
                shutil.copyfileobj(images, file)
            shard.unlink()
        small.flush()
        signed = np.memmap(small, np.uint8, "r", shape=(len(sizes), signatures.BYTES))
    if settings.format == "jpeg":
        np.save(folder / store.INDEX, np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]))
    return signed


def too_many(bad: int, total: int, max_unreadable: float) -> bool:
    """Return whether the share of bad images exceeds max_unreadable, or all images are bad."""
    return bad > 0 and (bad / total > max_unreadable or bad == total)


def kinds(bad: dict[int, str]) -> str:
    """Return the end of a sentence: how many photos have each problem, the most frequent first, and up to three names.

    A detail in brackets, such as the number of bytes that lack, makes no kind of its own.
    """
    names = defaultdict(list)
    for row in sorted(bad):
        name, problem = NAMED.fullmatch(bad[row]).groups()
        names[problem].append(name or f"image {row}")
    most = sorted(names, key=lambda problem: -len(names[problem]))[:KINDS]
    listed = [f"{len(names[kind])} x {kind} (such as {', '.join(names[kind][:3])})" for kind in most]
    return f": {'; '.join(listed)}" + "; ..." * (len(names) > KINDS)


def check_missing(missing: list[str], total: int, max_unreadable: float) -> list[str]:
    """Return a note on the missing photos of a source, if any; raises InputError if they are too many."""
    counted = f"{len(missing)} of {total} photos are missing"
    if too_many(len(missing), total, max_unreadable):
        raise InputError(TOO_MANY.format(counted, max_unreadable, f"; the first is {missing[0]}"))
    return [f"{counted} and left out, the first is {missing[0]}"] if missing else []


def leave_out(source: Source, bad: dict[int, str]) -> Source:
    """Return the source without its unreadable rows, with notes about them."""
    rows = tuple(i for i in range(len(source.manifest)) if i not in bad)
    summary = f"{len(bad)} of {len(source.manifest)} images can't be read and are left out, such as:"
    return replace(
        source,
        manifest=source.manifest.iloc[list(rows)].reset_index(drop=True),
        load=Subset(source.load, rows),
        notes=(*source.notes, summary, *(bad[row] for row in sorted(bad)[:LISTED])),
    )
