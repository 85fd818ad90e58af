"""Photos: decoded, fitted to one size, and packed into one image store. Imports no torch: workers start faster."""

import errno
import hashlib
import io
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Literal

import numpy as np
import PIL
from PIL import Image, ImageOps
from tqdm import tqdm

from m3lib import config
from m3lib.data import store
from m3lib.data.manifest import Source
from m3lib.errors import InputError

MAX_PIXELS = 64_000_000  # by the header, before anything is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # not EPS: Pillow would run Ghostscript on it
CHUNK = 16  # images that a worker draws before it reports
AHEAD = 4  # chunks a worker may be ahead of the file
SHOWN = 5  # bad images named one by one

Load = Callable[[int], np.ndarray]


def decode(path: Path) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a photo, upright by its EXIF orientation, transparency on white.

    Raises InputError, one sentence with the file's name, when the file is missing, no photo, cut off, or too large.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a damaged EXIF block, which takes nothing from the picture
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height <= MAX_PIXELS:
                    return np.array(to_rgb(upright(image)))
                problem = f"{image.width} x {image.height} pixels are more than {MAX_PIXELS // 10**6} megapixels"
    except FileNotFoundError:
        problem = "the photo does not exist"
    except Image.UnidentifiedImageError:
        problem = "not a photo in a known format"
    except Image.DecompressionBombError:
        problem = f"it has more than {MAX_PIXELS // 10**6} megapixels"
    except Exception as error:  # Pillow's formats raise anything on damage, from SyntaxError to struct.error
        problem = "damaged or cut off (" + (" ".join(str(error).split()) or type(error).__name__) + ")"
    raise InputError(f"{str(path)!r}: {problem}") from None


def upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError):  # the EXIF block is damaged, the picture need not be
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow would clip rather than scale
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def fit(image: np.ndarray, height: int, width: int, how: Literal["crop", "pad"]) -> np.ndarray:
    """(height, width, 3) uint8 from (h, w, 3) uint8, without distortion.

    crop: as large as possible inside the photo, centred. pad: the whole photo, centred on its median border colour.
    """
    if image.shape[:2] == (height, width):
        return image
    return (crop if how == "crop" else pad)(image, height, width)


def crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = image.shape[:2]
    scale = max(height / h, width / w)
    left, top = max(0, (w - width / scale) / 2), max(0, (h - height / scale) / 2)
    return resize(image, height, width, box=(left, top, w - left, h - top))


def pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w = image.shape[:2]
    scale = min(height / h, width / w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    inner = resize(image, h, w)
    top, left = (height - h) // 2, (width - w) // 2
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = border_colour(inner)
    canvas[top : top + h, left : left + w] = inner
    return canvas


def resize(image: np.ndarray, height: int, width: int, box: tuple[float, ...] | None = None) -> np.ndarray:
    picture = Image.fromarray(image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3))


def border_colour(image: np.ndarray) -> np.ndarray:
    """(3,) uint8: the median of the outermost pixels."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.median(border, axis=0).astype(np.uint8)


@dataclass(frozen=True)
class Photos:
    """Loads photo i from a folder, cut to its box where it has one."""

    folder: Path
    names: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int] | None, ...] = ()

    def __call__(self, i: int) -> np.ndarray:
        photo = decode(self.folder / self.names[i])
        box = self.boxes[i] if self.boxes else None
        if box is None:
            return photo
        left, top, right, bottom = box
        cut = photo[max(top, 0) : bottom, max(left, 0) : right]
        if not cut.size:
            raise InputError(f"{self.names[i]!r}: its bounding box {box} lies outside the photo")
        return cut


@dataclass(frozen=True)
class Rows:
    """Some rows of a loader, numbered anew."""

    load: Load
    rows: tuple[int, ...]

    def __call__(self, i: int) -> np.ndarray:
        return self.load(self.rows[i])


def pack(source: Source, folder: Path, settings: config.Images, workers: int | None = None) -> Source:
    """Write the image store into a folder, whole or not at all; returns the source with the rows in it.

    An image whose load raises InputError is left out of both and noted. Raises InputError when their share exceeds
    settings.max_bad, when the disk is too small, or when a worker process dies.

    The unfinished store lies in `work` beside the folder, which may be emptied before a run; a run that was cut off
    goes on from there. The files are the same for any number of workers and of cuts, unless photos of the same names
    changed in between: that is not noticed, so remove `work/images.journal` after changing some.
    """
    total = len(source.manifest)
    with (
        full_disk_told(folder),
        store.Work(folder.parent / "work", fingerprint(source, settings), settings, total) as work,
    ):
        work.check_space()
        chunks = draw_all(source.load, range(work.stop, total), settings, workers or count_cpus())
        for chunk in progress(chunks, work.stop, total):
            work.add(chunk)
            if too_many(len(work.bad), total, settings.max_bad):
                work.discard()  # the photos or the table will change, and the pictures with them
                raise InputError(too_many_bad(work, settings.max_bad))
        work.finish(folder)
    return without(source, work.bad) if work.bad else source


@contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """A full disk as one sentence; what was packed before stays, so that the next run goes on from there."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputError(
            f"the disk of {folder} is full: free some space, then run again; it goes on from here"
        ) from None


def fingerprint(source: Source, settings: config.Images) -> str:
    """Of what the store follows from, but for the photos' contents: loader, names, settings, and the code of m3lib."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer)
    pickler.fast = True  # equal values give equal bytes, whether or not they are one object
    kind = (settings.height, settings.width, settings.fit, settings.store)
    pickler.dump((source.load, tuple(source.manifest["image"]), kind, PIL.__version__))
    digest = hashlib.sha256(buffer.getvalue())
    for module in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(module.read_bytes())
    return digest.hexdigest()


def too_many_bad(work: store.Work, max_bad: float) -> str:
    return (
        f"{len(work.bad)} of the first {work.stop} images can't be read, more than the share images.max_bad = "
        f"{max_bad:g} in params.yaml allows of {work.total}; the first is {next(iter(work.bad.values()))}"
    )


def too_many(bad: int, total: int, max_bad: float) -> bool:
    """Whether a share is above max_bad; all of them are too many in any case."""
    return bad > 0 and (bad / total > max_bad or bad == total)


def without(source: Source, bad: dict[int, str]) -> Source:
    rows = tuple(i for i in range(len(source.manifest)) if i not in bad)
    summary = f"{len(bad)} of {len(source.manifest)} images can't be read and are left out, such as:"
    return replace(
        source,
        manifest=source.manifest.iloc[list(rows)].reset_index(drop=True),
        load=Rows(source.load, rows),
        notes=(*source.notes, summary, *list(bad.values())[:SHOWN]),
    )


def progress(chunks: Iterator[store.Chunk], done: int, total: int) -> Iterator[store.Chunk]:
    with tqdm(total=total, initial=done, unit="image", desc="images") as bar:
        for chunk in chunks:
            yield chunk
            bar.update(chunk.stop - bar.n)


def count_cpus() -> int:
    """The CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def draw_all(load: Load, rows: range, settings: config.Images, workers: int) -> Iterator[store.Chunk]:
    """The rows' fitted and encoded images in order."""
    context = get_context("forkserver")  # forking a notebook's kernel would copy its threads' locks
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, start_worker, (load, settings))
    waiting = deque()
    try:
        for start in range(rows.start, rows.stop, CHUNK):
            waiting.append(pool.submit(draw, range(start, min(start + CHUNK, rows.stop))))
            if len(waiting) > AHEAD * workers:  # a disk slower than the workers must not fill the memory
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise InputError(
            "a process that reads the images was killed, most likely for want of memory; what is done so far is kept: "
            "free some memory or make the images smaller (params.yaml, images), then run again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(load: Load, settings: config.Images) -> None:
    """Hand a worker its job once, not with every chunk."""
    global job
    job = load, settings
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=die_with_parent, daemon=True).start()


def die_with_parent() -> None:
    """A killed notebook must not leave workers that wait for ever."""
    connection.wait([parent_process().sentinel])
    os._exit(1)


def draw(rows: range) -> store.Chunk:
    """In a worker: the good rows' images, and a sentence for each bad one."""
    load, settings = job
    pictures, bad = [], {}
    for row in rows:
        try:
            picture = fit(load(row), settings.height, settings.width, settings.fit)
            pictures.append(store.encode(picture, settings.store))
        except InputError as error:
            bad[row] = str(error)
    return store.Chunk(rows.stop, [len(picture) for picture in pictures], b"".join(pictures), bad)


def row_of(pictures: np.ndarray) -> np.ndarray:
    """(H, K * W, 3): K pictures (K, H, W, 3) side by side, for looking at."""
    return np.concatenate(list(pictures), axis=1)
