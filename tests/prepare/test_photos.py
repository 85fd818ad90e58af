"""Photos of every kind become upright RGB of one size, or one sentence."""

import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from downloads import check_refused
from image_files import png, profile, tiff, tiff_of
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


# greys of other than 8 bits: white is the smallest usual limit that no value exceeds

RAMP = np.linspace(0, 1, 60).reshape(6, 10)
GREYS = {  # values, and what they must become
    "fractions": (RAMP, 255 * RAMP),
    "dark fractions": (0.3 * RAMP, 255 * 0.3 * RAMP),
    "fractions below 0": (RAMP - 0.1, 255 * (RAMP - 0.1)),
    "floats up to 255": (255 * RAMP, 255 * RAMP),
    "floats up to 65535": (65535 * RAMP, 255 * RAMP),
    "wider floats": (1e9 * RAMP, 255 * RAMP),
    "NaN": (np.where(RAMP < 0.5, np.nan, RAMP), np.where(RAMP < 0.5, 0, 255 * RAMP)),
    "infinite": (np.where(RAMP > 0.5, np.inf, RAMP), np.where(RAMP > 0.5, 255, 255 * RAMP)),
    "black": (0 * RAMP, 0 * RAMP),
    "8 bits": ((255 * RAMP).astype(np.int32), (255 * RAMP).astype(int)),
    "10 bits": (np.rint(1023 * RAMP).astype(np.uint16), 255 * RAMP),
    "12 bits": (np.rint(4095 * RAMP).astype(np.uint16), 255 * RAMP),
    "14 bits": (np.rint(16383 * RAMP).astype(np.int32), 255 * RAMP),
    "16 bits": (np.rint(65535 * RAMP).astype(np.uint16), 255 * RAMP),
    "16 of 32 bits": (np.rint(65535 * RAMP).astype(np.int32), 255 * RAMP),
    "below 0": (np.rint(65535 * RAMP - 9999).astype(np.int32), 255 * RAMP - 9999 / 257),
    "32 bits": (np.rint((2**31 - 1) * RAMP).astype(np.int32), 255 * RAMP),
    "32 bits without sign": (np.rint((2**32 - 1) * RAMP).astype(np.uint32), 255 * RAMP),
}


def check_grey(got: np.ndarray, expected: np.ndarray, tolerance: float = 1.0) -> None:
    assert got.dtype == np.uint8
    assert got.shape == (*expected.shape, 3)
    assert np.abs(got - np.clip(expected, 0, 255)[..., None]).max() <= tolerance


@pytest.mark.parametrize("case", GREYS)
def test_greys_of_any_range(tmp_path, case):
    values, expected = GREYS[case]
    values = values.astype(np.float32) if values.dtype.kind == "f" else values
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    path = tmp_path / "grey.tif"
    for photometric in (1, 0) if form == 3 or values.dtype == np.uint16 else (1,):  # Pillow opens no others
        path.write_bytes(tiff(10, 6, 8 * values.itemsize, photometric, values.tobytes(), form=form))
        check_grey(photos.decode(path), expected if photometric else 255 - np.clip(expected, 0, 255))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("top", [1, 4095, 65535])
def test_greys_of_a_png(tmp_path, depth, top):
    if depth < 16 and top != 1:
        pytest.skip("a value that fills the depth is scaled by Pillow")
    white = 2**depth - 1 if depth < 16 else max(top, 255)
    values = np.array([0, white]).repeat(8)
    row = values.astype(">u2").tobytes() if depth == 16 else np.packbits(bits_of(values, depth)).tobytes()
    (tmp_path / "grey.png").write_bytes(png(16, 3, depth, 0, row))
    check_grey(photos.decode(tmp_path / "grey.png"), np.tile(np.array([0, 255]).repeat(8), (3, 1)))


def bits_of(values: np.ndarray, depth: int) -> np.ndarray:
    """The values' bits, the highest first."""
    return (values[:, None] >> np.arange(depth)[::-1] & 1).astype(np.uint8).ravel()


def test_a_tiff_of_12_bits(tmp_path):
    values = np.array([0, 1000, 2000, 4095])
    (tmp_path / "grey.tif").write_bytes(tiff(4, 1, 12, 1, np.packbits(bits_of(values, 12)).tobytes()))
    check_grey(photos.decode(tmp_path / "grey.tif"), values[None] / 4095 * 255)


def test_colours_of_16_bits(tmp_path):
    colours = np.array([[65535, 32768, 0], [5000, 40000, 65535]])
    (tmp_path / "a.png").write_bytes(png(2, 1, 16, 2, colours.astype(">u2").tobytes()))
    (tmp_path / "a.tif").write_bytes(tiff(2, 1, 16, 2, colours.astype("<u2").tobytes(), colours=3))
    for name in ("a.png", "a.tif"):
        assert np.abs(photos.decode(tmp_path / name)[0] - colours / 257).max() <= 1


def test_colours_of_12_bits_stored_as_16_are_refused_but_not_black(tmp_path):
    for top, name in ((4095, "dark.png"), (0, "black.png")):
        (tmp_path / name).write_bytes(png(2, 1, 16, 2, struct.pack(">6H", *[top] * 6)))
    assert photos.decode(tmp_path / "black.png").max() == 0
    check_refused(lambda: photos.decode(tmp_path / "dark.png"), "dark.png", "12 bits or less, stored as 16")


# transparency and colour


@pytest.mark.parametrize(
    ("depth", "kind", "pixels", "key"),
    [
        (16, 0, struct.pack(">2H", 5000, 40000), struct.pack(">H", 5000)),
        (8, 0, bytes([7, 156]), struct.pack(">H", 7)),
        (4, 0, bytes([0x8A]), struct.pack(">H", 8)),
        (2, 0, bytes([0b10_01_0000]), struct.pack(">H", 2)),
        (1, 0, bytes([0b01_000000]), struct.pack(">H", 0)),
        (8, 2, bytes([1, 2, 3, 9, 9, 9]), struct.pack(">3H", 1, 2, 3)),
        (16, 2, struct.pack(">6H", 300, 600, 900, 9999, 9999, 9999), struct.pack(">3H", 300, 600, 900)),
    ],
)
def test_the_transparent_colour_of_a_png_becomes_white(tmp_path, depth, kind, pixels, key):
    """The first pixel has it; the second keeps its own colour."""
    (tmp_path / "with.png").write_bytes(png(2, 1, depth, kind, pixels, tRNS=key))
    (tmp_path / "without.png").write_bytes(png(2, 1, depth, kind, pixels))
    got, plain = (photos.decode(tmp_path / name)[0] for name in ("with.png", "without.png"))
    assert (got[0] == 255).all()
    assert (got[1] == plain[1]).all()
    assert (plain[0] < 200).all()


@pytest.mark.parametrize("depth", [8, 16])
def test_a_half_transparent_pixel_is_mixed_with_white(tmp_path, depth):
    scale = 257 if depth == 16 else 1
    pixel = np.array([40, 80, 120, 51]) * scale
    expected = np.array([40, 80, 120]) * 0.2 + 255 * 0.8
    dtype = ">u2" if depth == 16 else "u1"
    (tmp_path / "rgba.png").write_bytes(png(1, 1, depth, 6, pixel.astype(dtype).tobytes()))
    (tmp_path / "la.png").write_bytes(png(1, 1, depth, 4, pixel[[0, 3]].astype(dtype).tobytes()))
    palette = {"PLTE": bytes([40, 80, 120]), "tRNS": bytes([51])}
    (tmp_path / "p.png").write_bytes(png(1, 1, 8, 3, b"\0", **palette))
    for name, colour in {"rgba.png": expected, "la.png": expected[[0, 0, 0]], "p.png": expected}.items():
        assert np.abs(photos.decode(tmp_path / name)[0, 0] - colour).max() <= 1, name


SRGB = np.array([[0.4361, 0.2225, 0.0139], [0.3851, 0.7169, 0.0971], [0.1431, 0.0606, 0.7141]])  # XYZ, white D50
WIDE = np.array([[0.6097, 0.3111, 0.0195], [0.2053, 0.6257, 0.0609], [0.1492, 0.0632, 0.7446]])  # Adobe RGB's
COLOURS = np.array([[200, 60, 90], [128, 128, 128], [40, 160, 110], [255, 255, 255], [90, 90, 200]])


def to_srgb(xyz: np.ndarray) -> np.ndarray:
    """(n, 3) sRGB in 0 to 255 of XYZ with white D50."""
    linear = np.clip(xyz @ np.linalg.inv(SRGB), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg", "palette.png", "alpha.png", "nameless.png"])
def test_colours_are_converted_by_their_profile(tmp_path, name):
    image = Image.fromarray(np.tile(COLOURS[:, None].astype(np.uint8), (1, 8, 1)).repeat(8, axis=0))
    if name == "palette.png":
        image = image.quantize(5)
    elif name == "alpha.png":
        image.putalpha(255)
    options = {"a.webp": {"lossless": True}, "a.jpg": {"quality": 100, "subsampling": 0}}.get(name, {})
    wide = profile(WIDE, 2.2).replace(b"desc", b"none") if name == "nameless.png" else profile(WIDE, 2.2)
    image.save(tmp_path / name, icc_profile=wide, **options)
    expected = to_srgb((COLOURS / 255) ** 2.2 @ WIDE)
    assert np.abs(expected - COLOURS).max() > 20
    assert np.abs(photos.decode(tmp_path / name)[4::8, 4] - expected).max() <= 3


def test_greys_are_converted_by_their_profile(tmp_path):
    """A gamma of 1: the values are light itself."""
    greys = np.array([[0, 30, 90, 200, 255]], np.uint8)
    Image.fromarray(greys).save(tmp_path / "grey.png", icc_profile=profile(None, 1.0))
    linear = greys[0, :, None] / 255 * np.ones(3)
    assert np.abs(photos.decode(tmp_path / "grey.png")[0] - to_srgb(linear @ SRGB)).max() <= 2


def test_a_profile_that_does_not_fit_or_is_damaged_is_ignored_and_srgb_changes_no_bit(tmp_path):
    image = Image.fromarray(COLOURS[None].astype(np.uint8))
    wide = profile(WIDE, 2.2)
    for data in (
        profile(None, 1.0),
        wide[:200],
        b"junk",
        wide[:132] + bytes(100),
        profile(SRGB, 1.8, "sRGB IEC61966-2.1"),
    ):
        image.save(tmp_path / "a.png", icc_profile=data)
        assert (photos.decode(tmp_path / "a.png")[0] == COLOURS).all()


def test_cmyk_and_lab(tmp_path):
    """Adobe's CMYK files hold inverted values, which Pillow undoes; Lab has the white of D50."""
    inks = np.array([[0, 255, 255, 0], [255, 0, 0, 0], [0, 0, 0, 128], [60, 20, 10, 40]])
    rows = np.tile(inks[:, None].astype(np.uint8), (1, 8, 1)).repeat(8, axis=0)
    expected = (255 - inks[:, :3]) * (255 - inks[:, 3:]) / 255
    for name in ("a.jpg", "a.tif"):
        Image.frombytes("CMYK", (8, 32), rows.tobytes()).save(
            tmp_path / name, **({"quality": 100} if "j" in name else {})
        )
        assert np.abs(photos.decode(tmp_path / name)[4::8, 4] - expected).max() <= 3
    lab = np.array([[60, 20, 30], [80, -30, 10], [40, 5, -40]])
    stored = np.column_stack([np.rint(lab[:, 0] * 2.55), lab[:, 1:] % 256]).astype(np.uint8)
    Image.frombytes("LAB", (3, 1), stored.tobytes()).save(tmp_path / "lab.tif")
    y = (lab[:, 0] + 16) / 116
    f = np.column_stack([y + lab[:, 1] / 500, y, y - lab[:, 2] / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.9642, 1, 0.8249]
    assert np.abs(photos.decode(tmp_path / "lab.tif")[0] - to_srgb(xyz)).max() <= 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_counts(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    frames[0].save(tmp_path / "a", kind, save_all=True, append_images=frames[1:])
    assert np.abs(photos.decode(tmp_path / "a").astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_with_a_profile(tmp_path, orientation):
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 12:] = 255, (200, 60, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif, icc_profile=profile(WIDE, 2.2))
    converted = np.where(pixels == 0, 0, pixels).astype(float)
    converted[:4, 12:] = to_srgb((np.array([[200, 60, 90]]) / 255) ** 2.2 @ WIDE)
    flipped, turned = converted[:, ::-1], converted.transpose(1, 0, 2)
    expected = {
        1: converted, 2: flipped, 3: converted[::-1, ::-1], 4: converted[::-1],
        5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1],
    }[orientation]  # fmt: skip
    assert np.abs(photos.decode(tmp_path / "a.png") - expected).max() <= 2


# what is no photo


def save(path: Path, kind: str, image: Image.Image, cut: bool = False) -> None:
    image.save(path, kind)
    if cut:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def iso(brand: bytes) -> bytes:
    return struct.pack(">I4s4sI4s", 20, b"ftyp", brand, 0, brand) + bytes(range(200))


RAW_TAGS = {254: 1, 256: 2, 257: 1, 259: 1, 262: 1, 277: 1, 278: 1, 279: 2}
FILES = {  # bytes, words of the sentence
    "heic": (iso(b"heic"), "an HEIC photo, not a photo in a known format: convert it to JPEG or PNG"),
    "heif": (iso(b"mif1"), "an HEIC photo"),
    "heics": (iso(b"hevc"), "an HEIC photo"),
    "video": (iso(b"isom"), "a video, not a photo: save one of its frames as JPEG or PNG"),
    "quicktime": (iso(b"qt  "), "a video"),
    "matroska": (b"\x1a\x45\xdf\xa3" + bytes(9), "a video"),
    "cr3": (iso(b"crx "), "a camera's raw file"),
    "nef or dng": (tiff_of(RAW_TAGS, {258: [8]}, b"ab"), "a camera's raw file, not a photo in a known format: convert"),
    "raf": (b"FUJIFILMCCD-RAW 0201", "a camera's raw file"),
    "tiff of 64 bits": (tiff(1, 1, 64, 1, bytes(8), form=3), "a TIFF of a kind that can't be read: convert it"),
    "tiff of float colours": (tiff(1, 1, 32, 2, bytes(12), colours=3, form=3), "a TIFF of a kind that can't be read"),
    "pdf": (b"%PDF-1.7", "a PDF, PostScript or Photoshop file, not a photo in a known format: convert"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PDF, PostScript or Photoshop file"),
    "psd": (b"8BPS\0\1" + bytes(20), "a PDF, PostScript or Photoshop file"),
    "svg": (
        b'<?xml version="1.0"?>\n<!-- x --><svg xmlns="">',
        "an SVG drawing, not a photo in a known format: convert",
    ),
    "html": (b"\n<!DOCTYPE html><svg>", "an HTML page, not a photo: download it again"),
    "error page": (b"<html>not found</html>", "an HTML page"),
    "json": (b'{"error": "not found"}', "a text file, not a photo: download it again"),
    "text": ("schönes Foto\n".encode(), "a text file"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
        "a pointer of Git LFS: run `git lfs",
    ),
    "zip": (b"PK\3\4" + bytes(30), "an archive, not a photo: unpack it"),
    "tar": (b"photo.jpg".ljust(257, b"\0") + b"ustar\x0000", "an archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(9), "an archive"),
    "of macOS": (b"\0\5\x16\7\0\2", "use the file without `._` in its name"),
    "empty": (b"", "an empty file, not a photo: download it again"),
    "zeros": (bytes(5000), "begins with zeros only"),
    "start of a JPEG": (b"\xff\xd8\xff\xe0" + bytes(20), "damaged at its beginning: download it again"),
    "start of a PNG": (b"\x89PNG\r\n\x1a\n", "damaged at its beginning"),
    "noise": (bytes(range(128, 256)) + bytes(range(128)), "not a photo in a known format: convert it to JPEG or PNG"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_photo_is_named(tmp_path, case):
    data, words = FILES[case]
    path = tmp_path / "bad\nname.jpg"
    path.write_bytes(data)
    check_refused(lambda: photos.decode(path), r"bad\nname.jpg", words)
    check_refused(lambda: photos.decode(io.BytesIO(data), "upload.jpg"), "'upload.jpg': ", words)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
BAD = {  # how to write the file, words of the sentence beside its name
    "missing": (lambda path: None, "does not exist"),
    "folder": (lambda path: path.mkdir(), "cannot be read (Is a directory)"),
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


def test_a_name_that_the_file_system_cannot_have(tmp_path):
    check_refused(lambda: photos.decode(tmp_path / "x\ud800.jpg"), r"x\ud800.jpg", "no file can have this name")
    check_refused(lambda: photos.decode(tmp_path / ("x" * 300)), "File name too long")


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
