"""The signature of a photo: its content without a border of one colour, as 32 x 32 RGB pixels; see `duplicates`."""

import numpy as np
from PIL import Image

SIDE = 32  # pixels
BYTES = SIDE * SIDE * 3 + 2  # of a signature: height and width of the content, then its pixels
LONGEST = 128  # pixels; larger photos are made smaller before their border is removed
BORDER, BORDER_SHARE = 30, 0.03  # a line of pixels is border if at most this share differs by more grey levels
SMALLEST = 8  # pixels; a border is kept if it leaves less


def sign(photo: np.ndarray) -> np.ndarray:
    """Return the signature (BYTES,) uint8 of a photo (h, w, 3) uint8 RGB of any size."""
    h, w = photo.shape[:2]
    if max(h, w) > LONGEST:
        photo = resize(photo, max(1, h * LONGEST // max(h, w)), max(1, w * LONGEST // max(h, w)))
    content = without_border(photo)
    return np.concatenate([np.array(content.shape[:2], np.uint8), resize(content, SIDE, SIDE).ravel()])


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize (h, w, 3) uint8 linearly, which blurs more than `photos.fit`: compression and sizes leave fewer traces."""
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3))


def without_border(photo: np.ndarray) -> np.ndarray:
    """Remove what surrounds the content in one colour, repeatedly: a grey frame, then the white inside it."""
    while True:
        edge = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
        differs = np.abs(photo - np.median(edge, axis=0)).max(axis=2) > BORDER
        rows, columns = (np.flatnonzero(differs.mean(axis=axis) > BORDER_SHARE) for axis in (1, 0))
        if min(len(rows), len(columns)) == 0:
            return photo
        content = photo[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if content.shape == photo.shape or min(content.shape[:2]) < SMALLEST:
            return photo
        photo = content
