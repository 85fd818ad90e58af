"""Photos of every kind come out as upright RGB, or as one sentence; the store is whole or absent."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from drawn import SMALL, Drawn, source
from m3lib.errors import InputError
from m3lib.prepare import photos


def sentence(problem: pytest.ExceptionInfo) -> str:
    text = str(problem.value)
    assert "\n" not in text
    return text


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


def test_a_damaged_exif_block_takes_nothing_from_the_picture(tmp_path):
    Image.new("RGB", (8, 8), "white").save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f junk")
    assert photos.decode(tmp_path / "x.jpg").min() > 250


def bomb(path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(path, "PNG")


def spoil(path: Path, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    if kind == "text":
        path.write_text("<html>not found</html>")
    elif kind == "empty":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    elif kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    elif kind == "large":
        bomb(path, 8_100)
    elif kind == "huge":
        bomb(path, 14_000)
    elif kind.startswith("cut "):
        Image.fromarray(noise).save(path, kind.split()[1])
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "does not exist"),
        ("text", "not a photo"),
        ("empty", "not a photo"),
        ("postscript", "not a photo"),
        ("folder", "damaged or cut off"),
        ("cut JPEG", "cut off"),
        ("cut PNG", "cut off"),
        ("cut WEBP", "cut off"),
        ("cut BMP", "cut off"),
        ("large", "8100 x 8100 pixels are more than 64 megapixels"),
        ("huge", "more than 64 megapixels"),
    ],
)
def test_a_bad_photo_is_one_sentence_with_its_name(tmp_path, kind, problem):
    path = tmp_path / "bad\nname.jpg"
    spoil(path, kind)
    with pytest.raises(InputError, match=problem) as raised:
        photos.decode(path)
    assert r"bad\nname.jpg" in sentence(raised)


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


# pack


@pytest.fixture
def folder(tmp_path):
    """Of a prepared data set; unfinished work lies beside it."""
    (tmp_path / "prepared").mkdir()
    return tmp_path / "prepared"


def test_the_store_holds_every_row_in_order(folder):
    given_ = source(37, Drawn())
    assert photos.pack(given_, folder, SMALL) is given_
    store = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
    assert (store.shape, store.dtype) == ((37, 16, 20, 3), np.uint8)
    for i in range(37):
        assert (store[i] == photos.fit(given_.load(i), 16, 20, "crop")).all()
    assert [path.name for path in folder.iterdir()] == ["images.npy"]


def test_the_store_is_the_same_for_any_number_of_workers(folder):
    stores = []
    for workers in (1, 2):
        kept = photos.pack(source(1050, Drawn(bad=(0, 16, 1049))), folder, replace(SMALL, max_bad=0.5), workers)
        stores.append(((folder / "images.npy").read_bytes(), kept.notes, tuple(kept.manifest["image"])))
    assert stores[0] == stores[1]


def test_bad_images_leave_the_store_and_the_manifest(folder):
    bad = (1, 4, 5, 6, 7, 8, 9, 39)
    kept = photos.pack(source(40, Drawn(bad=bad)), folder, replace(SMALL, max_bad=0.2))
    store = np.load(folder / "images.npy")
    assert len(store) == len(kept.manifest) == 32
    assert list(kept.manifest["image"][:4]) == ["0.png", "2.png", "3.png", "10.png"]
    for i in (0, 3, 31):
        assert (store[i] == photos.fit(kept.load(i), 16, 20, "crop")).all()
    assert kept.notes[0] == "before"
    assert "8 of 40 images" in kept.notes[1]
    assert kept.notes[2:] == tuple(f"photo {i} is spoilt" for i in bad[:5])


@pytest.mark.parametrize(
    ("bad", "total", "max_bad", "expected"),
    [(0, 9, 0.0, False), (29, 100, 0.29, False), (30, 100, 0.29, True), (9, 9, 1.0, True), (8, 9, 1.0, False)],
)
def test_a_share_of_bad_images_may_reach_the_limit(bad, total, max_bad, expected):
    assert photos.too_many(bad, total, max_bad) is expected


def test_whole_chunks_of_bad_images_are_no_trouble(folder):
    kept = photos.pack(source(48, Drawn(bad=tuple(range(16, 48)))), folder, replace(SMALL, max_bad=0.9))
    assert len(np.load(folder / "images.npy")) == len(kept.manifest) == 16


@pytest.mark.parametrize(
    ("load", "max_bad", "words"),
    [
        (Drawn(bad=(3, 9)), 0.04, ["2 of the first 16 images", "images.max_bad = 0.04", "of 40", "photo 3 is spoilt"]),
        (Drawn(bad=tuple(range(40))), 1.0, ["40 of the first 40", "photo 0 is spoilt"]),
        (Drawn(kill=20), 1.0, ["killed", "run again"]),
    ],
)
def test_a_failed_pack_is_one_sentence_and_keeps_the_old_store(folder, load, max_bad, words):
    (folder / "images.npy").write_bytes(b"old")
    with pytest.raises(InputError) as raised:
        photos.pack(source(40, load), folder, replace(SMALL, max_bad=max_bad))
    assert all(word in sentence(raised) for word in words)
    assert [path.read_bytes() for path in folder.iterdir()] == [b"old"]


def test_a_pack_that_breaks_half_way_leaves_no_store(folder):
    with pytest.raises(RuntimeError, match="no one's fault"):
        photos.pack(source(200, Drawn(bug=150)), folder, SMALL)
    assert not list(folder.iterdir())


def test_reading_photos_imports_no_torch():
    code = "import sys, m3lib.prepare.photos, m3lib.prepare; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
