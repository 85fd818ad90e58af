"""Decode photos to upright sRGB and fit them to one size. Imports no torch, so that worker processes start fast."""

import io
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps

from m3lib.errors import InputError
from m3lib.prepare import file_kinds

MAX_PIXELS = 64_000_000  # compared with the size in the file's header, before anything is decoded
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "PPM")  # not EPS: Pillow would run Ghostscript on it
WHITES = (255, 1023, 4095, 16383, 65535)  # the largest values of 8, 10, 12, 14 and 16 bits
SRGB = ImageCms.createProfile("sRGB")


@dataclass(frozen=True)
class PhotoLoader:
    """Load photo i of a folder as (h, w, 3) uint8 RGB."""

    folder: Path
    names: tuple[str, ...]

    def __call__(self, i: int) -> np.ndarray:
        return decode(self.folder / self.names[i])


def decode(path: Path | io.BytesIO, name: str = "") -> np.ndarray:
    """Return the photo of a file, or of its bytes, as `to_array` does; name: of the bytes, for the sentences.

    Raises InputError, naming the file, if it is missing, is no photo, is damaged, or has too many pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about damaged EXIF blocks; the pixels are intact
            with Image.open(path, formats=FORMATS) as image:
                check(image)
                return to_array(image)
    except InputError as error:
        problem = str(error)
    except FileNotFoundError:
        problem = "the photo does not exist"
    except UnicodeEncodeError as error:
        problem = f"no file can have this name, which {error.encoding}, the file system's encoding, can't write"
    except Image.UnidentifiedImageError:
        problem = file_kinds.describe(first_bytes(path))
    except Image.DecompressionBombError:
        problem = f"it has more than {MAX_PIXELS // 10**6} megapixels"
    except Exception as error:  # Pillow raises many types on damaged files, from SyntaxError to struct.error
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        problem = f"{'cannot be read' if getattr(error, 'errno', None) else 'damaged or cut off'} ({reason})"
    raise InputError(f"{name or str(path)!r}: {problem}") from None


def first_bytes(path: Path | io.BytesIO) -> bytes:
    if isinstance(path, Path):
        with path.open("rb") as file:
            return file.read(file_kinds.FIRST)
    return path.getvalue()[: file_kinds.FIRST]


def check(image: Image.Image) -> None:
    """Raise InputError for an opened file with too many pixels, or whose first image is only a small preview."""
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height} pixels"
        raise InputError(f"{size} are more than {MAX_PIXELS // 10**6} megapixels")
    if tags(image).get(254) == 1:  # a reduced image, before the full one
        raise InputError(f"a camera's raw file, {file_kinds.CONVERT}")


def tags(image: Image.Image) -> dict:
    """Return the tags of an opened TIFF file, by number; empty for other images."""
    return getattr(image, "tag_v2", {})


def to_array(image: Image.Image) -> np.ndarray:
    """Return an image of any mode as (h, w, 3) uint8 sRGB.

    It is upright by its EXIF orientation, in sRGB by its colour profile, and white where it is transparent. Greys of
    other than 8 bits are scaled, see `eight_bits`. Of several frames or pages the first counts. Raises InputError for
    colours of 12 bits or less that are stored as 16, of which Pillow keeps only the upper 8.
    """
    samples, layout, key = raw_mode(image), tags(image), image.info.get("transparency")
    image = upright(image)
    profile = image.info.get("icc_profile")
    if image.mode[0] in "IF":
        image = in_grey(image, layout, key)
    elif key is not None:
        image.info["transparency"] = scaled_key(key, samples)
    array = np.array(in_srgb(opaque(image), profile))
    if samples.startswith("RGB;16") and 0 < array.max() < 16:
        raise InputError("its colours have 12 bits or less, stored as 16: save it with 8 bits per colour")
    return array


def raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the samples of a file that is not decoded yet, such as "RGB;16B"; else ""."""
    arguments = image.tile[0][3] if getattr(image, "tile", None) else ""
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def scaled_key(key: int | bytes | tuple[int, ...], samples: str) -> int | bytes | tuple[int, ...]:
    """Return a PNG's transparent colour in 8 bits: Pillow scales the samples to 8 bits, but not this colour."""
    if samples.startswith("RGB;16"):
        return tuple(value >> 8 for value in key)
    return key * {"L;2": 85, "L;4": 17}.get(samples, 1)


def in_grey(image: Image.Image, layout: dict, key: int | None) -> Image.Image:
    """Return a grey image of 16 or 32 bits in 8 bits, white where it has the transparent value `key`."""
    values = np.asarray(image)
    if values.dtype == np.int32 and layout.get(258) == (32,) and layout.get(339, (1,)) == (1,):
        values = values.view(np.uint32)  # Pillow reads unsigned numbers as signed ones
    grey = eight_bits(values)
    if layout.get(262) == 0:  # 0 is white
        grey = 255 - grey
    if key is not None:
        grey[values == key] = 255
    return Image.fromarray(grey)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Scale grey values (h, w) to uint8; negative values become black.

    Files don't say which value is white. It is 1 for fractions up to 1, else the smallest of WHITES that no value
    exceeds, else the largest value.
    """
    top = values.max(where=np.isfinite(values), initial=0)
    whites = (1, *WHITES) if values.dtype.kind == "f" else WHITES
    white = next((white for white in whites if top <= white), top)
    scaled = np.nan_to_num(values.astype(np.float32) * np.float32(255 / white), nan=0, posinf=255, neginf=0)
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def upright(image: Image.Image) -> Image.Image:
    """Return a copy, rotated or mirrored as its EXIF orientation says; a damaged EXIF block is ignored."""
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, KeyError, TypeError):
        return image.copy()


def opaque(image: Image.Image) -> Image.Image:
    """Lay an image on white where it is transparent; palettes become RGB."""
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return image.convert("RGB") if image.mode in ("RGBA", "P") else image


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert to sRGB by a colour profile; one that is damaged, or of another kind of image, is ignored."""
    with suppress(OSError, ImageCms.PyCMSError):
        given = ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        if "sRGB" not in (given.profile.profile_description or ""):
            return ImageCms.profileToProfile(image, given, SRGB, outputMode="RGB")
    return image.convert("RGB")


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
