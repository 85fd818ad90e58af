"""Decode photos to upright RGB and fit them to one size. Imports no torch, so that worker processes start fast."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps

from m3lib.errors import InputError

MAX_PIXELS = 64_000_000  # compared with the size in the file's header, before anything is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # not EPS: Pillow would run Ghostscript on it


@dataclass(frozen=True)
class PhotoLoader:
    """Load photo i of a folder as (h, w, 3) uint8 RGB."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, i: int) -> np.ndarray:
        return decode(self.folder / self.names[i])


def decode(path: Path | BinaryIO) -> np.ndarray:
    """Return a photo as (h, w, 3) uint8 RGB, upright by its EXIF orientation, with transparent areas in white.

    Raises InputError, naming the file, if it is missing, is no photo, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF blocks; the pixels are intact
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
    except Exception as error:  # Pillow raises many types on damaged files, from SyntaxError to struct.error
        problem = "damaged or cut off (" + (" ".join(str(error).split()) or type(error).__name__) + ")"
    raise InputError(f"{str(path)!r}: {problem}") from None


def upright(image: Image.Image) -> Image.Image:
    """Rotate or mirror an image as its EXIF orientation says; a damaged EXIF block is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError):
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, on a white background where it is transparent."""
    if image.mode.startswith("I"):  # 16 bits per pixel, which Pillow would clip instead of scaling
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def fit(image: np.ndarray, height: int, width: int, how: Literal["crop", "pad"]) -> np.ndarray:
    """Resize (h, w, 3) uint8 to (height, width, 3) without distortion.

    crop: take the largest centred area of the target's aspect ratio. pad: keep all of the image, centred, and fill the
    rest with the median colour of its border.
    """
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    if how == "crop":
        scale = max(height / h, width / w)
        left, top = max(0, (w - width / scale) / 2), max(0, (h - height / scale) / 2)
        return resize(image, height, width, box=(left, top, w - left, h - top))
    scale = min(height / h, width / w)
    h, w = max(1, round(h * scale)), max(1, round(w * scale))
    inner = resize(image, h, w)
    border = np.concatenate([inner[0], inner[-1], inner[:, 0], inner[:, -1]])
    canvas = np.empty((height, width, 3), np.uint8)
    canvas[:] = np.median(border, axis=0).astype(np.uint8)
    top, left = (height - h) // 2, (width - w) // 2
    canvas[top : top + h, left : left + w] = inner
    return canvas


def resize(image: np.ndarray, height: int, width: int, box: tuple[float, ...] | None = None) -> np.ndarray:
    """Resize (h, w, 3) uint8, or the part of it inside `box`, with bicubic interpolation."""
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box, reducing_gap=3)
    return np.asarray(resized)
