"""Photos of every kind become upright RGB of one size, or one sentence."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downloads import check_refused
from m3lib.prepare import photos

# decode


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA", "I;16"])
def test_decode_gives_rgb_from_every_mode(tmp_path, mode):
    value = 200 * 256 if mode == "I;16" else 200
    image = Image.new("I;16", (6, 4), value) if mode == "I;16" else Image.new("RGB", (6, 4), (value,) * 3).convert(mode)
    path = tmp_path / ("photo.jpg" if mode == "CMYK" else "photo.png")
    image.save(path)
    got = photos.decode(path)
    assert got.shape == (4, 6, 3)
    assert got.dtype == np.uint8
    if mode != "1":  # dithered
        assert np.abs(got.astype(int) - 200).max() <= 4


def test_transparency_becomes_white(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.save(tmp_path / "rgba.png")
    indexed = Image.new("RGB", (4, 4), "red").convert("P")
    indexed.save(tmp_path / "palette.png", transparency=indexed.getpixel((0, 0)))
    for name in ("rgba.png", "palette.png"):
        assert (photos.decode(tmp_path / name) == 255).all()


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    got = photos.decode(tmp_path / "turned.jpg")
    assert got.shape == (16, 8, 3)
    assert got[:6].min() > 200
    assert got[-6:].max() < 50


def test_a_damaged_exif_block_is_ignored(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f junk")
    assert photos.decode(tmp_path / "x.jpg").min() > 250


def save(path: Path, kind: str, image: Image.Image, cut: bool = False) -> None:
    image.save(path, kind)
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {  # how to write the file, words of the sentence beside its name
    "missing": (lambda path: None, "does not exist"),
    "text": (lambda path: path.write_text("<html>not found</html>"), "not a photo"),
    "empty": (lambda path: path.touch(), "not a photo"),
    "postscript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "not a photo"),
    "folder": (lambda path: path.mkdir(), "damaged or cut off"),
    "cut JPEG": (lambda path: save(path, "JPEG", NOISE, cut=True), "cut off"),
    "cut PNG": (lambda path: save(path, "PNG", NOISE, cut=True), "cut off"),
    "cut WEBP": (lambda path: save(path, "WEBP", NOISE, cut=True), "cut off"),
    "large": (lambda path: save(path, "PNG", Image.new("1", (8100, 8100))), "8100 x 8100 pixels are more than 64 mega"),
    "huge": (lambda path: save(path, "PNG", Image.new("1", (14_000, 14_000))), "more than 64 megapixels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_photo_is_one_sentence_with_its_name(tmp_path, case):
    write, words = BAD[case]
    path = tmp_path / "bad\nname.jpg"
    write(path)
    check_refused(lambda: photos.decode(path), r"bad\nname.jpg", words)


# fit


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    target=st.tuples(st.integers(16, 64), st.integers(16, 64)),
    how=st.sampled_from(["crop", "pad"]),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_fit_gives_the_size_and_keeps_a_plain_colour(size, target, how, colour):
    image = np.full((*size, 3), colour, np.uint8)
    got = photos.fit(image, *target, how)
    assert got.shape == (*target, 3)
    assert got.dtype == np.uint8
    assert np.abs(got.astype(int) - colour).max() <= 1


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 1), (3, 2000)])
@pytest.mark.parametrize("how", ["crop", "pad"])
def test_fit_takes_extreme_shapes(shape, how):
    assert photos.fit(np.zeros((*shape, 3), np.uint8), 96, 72, how).shape == (96, 72, 3)


def test_crop_keeps_the_centre_and_pad_keeps_all():
    image = np.zeros((40, 120, 3), np.uint8)
    image[:, 40:80] = 255
    cropped, padded = (photos.fit(image, 40, 40, how)[..., 0] for how in ("crop", "pad"))
    assert cropped[:, 3:-3].min() > 240
    assert padded.shape == (40, 40)
    assert (padded[:12] == padded[0, 0]).all()
    assert padded[20, 2] < 20 < 240 < padded[20, 20]


def test_pad_fills_with_the_border_colour():
    image = np.full((20, 60, 3), (250, 240, 230), np.uint8)
    image[5:15, 20:40] = 0
    got = photos.fit(image, 60, 60, "pad")
    assert (got[:18] == (250, 240, 230)).all()
    assert (got[-18:] == (250, 240, 230)).all()


def test_fit_smooths_when_it_shrinks():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(photos.fit(stripes, 32, 32, "crop")[:, 2:-2].astype(int) - 127).max() < 20


def test_reading_photos_imports_no_torch():
    code = "import sys, m3lib.prepare.photos, m3lib.prepare; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
