"""Read the image store of a prepared folder, raw or JPEG, through a memory map; `manifest` describes its files."""

import io
import mmap
from pathlib import Path

import numpy as np
from PIL import Image

from m3lib.errors import InputError

RAW = "images.npy"
JPEGS, INDEX = "images.bin", "images.idx.npy"
QUALITY = 95


def encode(image: np.ndarray, kind: str) -> bytes:
    """Return (H, W, 3) uint8 as stored in a store of a kind, raw or jpeg."""
    if kind == "raw":
        return image.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling=0)  # subsampling blurs prints
    return buffer.getvalue()


class JpegStore:
    """A store of JPEGs, indexed like the (I, H, W, 3) uint8 array of a raw store.

    Raises OSError or ValueError if the files of the folder are missing, cut, or don't fit together.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path) -> None:
        self.path, self.shape = folder / JPEGS, ()
        self.offsets = np.load(folder / INDEX, allow_pickle=False)  # (I + 1,) int64
        with self.path.open("rb") as file:
            self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        is_index = self.offsets.ndim == 1 and self.offsets.dtype == np.int64 and len(self.offsets) > 1
        if not is_index or list(self.offsets[[0, -1]]) != [0, len(self.data)] or (np.diff(self.offsets) < 0).any():
            raise ValueError(f"{JPEGS} and {INDEX} don't belong together")
        self.rows = np.arange(len(self.offsets) - 1)
        self.shape = (len(self.rows), *self.decode(0).shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: int | slice | np.ndarray) -> np.ndarray:
        rows = self.rows[key]  # numpy's rules for negative, boolean and wrong indices
        images = np.empty((rows.size, *self.shape[1:]), np.uint8)
        for i, row in enumerate(rows.flat):
            images[i] = self.decode(row)
        return images.reshape(*rows.shape, *self.shape[1:])

    def decode(self, row: int) -> np.ndarray:
        """Return one image, (H, W, 3) uint8; raises InputError if the file is damaged."""
        data = self.data[self.offsets[row] : self.offsets[row + 1]]
        try:
            with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
                pixels = np.asarray(image)
            if pixels.shape[2:] != (3,) or (self.shape and pixels.shape != self.shape[1:]):
                raise ValueError("not of the size of the other images")
            return pixels
        except Exception:  # Pillow raises many types on damaged files
            raise InputError(f"image {row} of {self.path} is damaged; run `dvc repro --force prepare`") from None


def open_store(folder: Path) -> np.ndarray | JpegStore:
    """Open a store of either kind, (I, H, W, 3) uint8; raises OSError, EOFError or ValueError if it is damaged."""
    if (folder / JPEGS).exists():
        return JpegStore(folder)
    images = np.load(folder / RAW, mmap_mode="r", allow_pickle=False)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise ValueError(f"{RAW} holds no images")
    return images
