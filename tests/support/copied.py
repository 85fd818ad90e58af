"""Photos drawn as products on white, and copies of them as shops and downloads make them."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps

from m3lib.prepare.signatures import sign

SIZE = (96, 128)  # pixels, width and height


def photo(seed: int, colour: float = 0.0) -> Image.Image:
    """A print of random colours in the outline of a random ellipse; colour: how far all its colours are shifted."""
    rng = np.random.default_rng(seed)
    coarse = np.clip(rng.integers(0, 200, (9, 7, 3)) + colour, 0, 255).astype(np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC))
    y, x = np.mgrid[-1 : 1 : SIZE[1] * 1j, -1 : 1 : SIZE[0] * 1j]
    width, height = rng.uniform(0.5, 0.9, 2)
    pixels[(x / width) ** 2 + (y / height) ** 2 > 1] = 255
    return Image.fromarray(pixels)


def saved(image: Image.Image, kind: str, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)))


def cropped(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    return image.crop((left, top, image.width - right, image.height - bottom))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "png": lambda image: saved(image, "PNG"),
    "quality 50": lambda image: saved(image, "JPEG", quality=50),
    "quality 90": lambda image: saved(image, "JPEG", quality=90),
    "half the size": lambda image: resized(image, 0.5),
    "twice the size": lambda image: resized(image, 2),
    "cropped": lambda image: cropped(image, 3, 0, 1, 4),
    "mirrored": ImageOps.mirror,
    "in a grey frame": lambda image: ImageOps.expand(image, 5, "grey"),
    "on a white square": lambda image: ImageOps.pad(image, (128, 128), color="white"),
    "several changes": lambda image: saved(
        resized(ImageOps.mirror(cropped(image, 0, 2, 3, 1)), 0.8), "JPEG", quality=70
    ),
}


def signatures(images: list[Image.Image]) -> np.ndarray:
    """(I, BYTES) uint8."""
    return np.stack([sign(np.asarray(image)) for image in images])
