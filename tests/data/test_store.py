"""A JPEG store reads like an array; missing, cut or damaged files are refused."""

import shutil

import numpy as np
import pytest

from drawn import JPEG, Drawn, source
from m3lib.data import manifest, store
from m3lib.errors import InputError
from m3lib.prepare import pack, photos

COUNT = 37


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A folder with a store of JPEGs."""
    folder = tmp_path_factory.mktemp("packed") / "prepared"
    pack.pack(source(COUNT, Drawn(smooth=True)), folder, JPEG, workers=1)
    return folder


@pytest.fixture
def folder(packed, tmp_path):
    """A copy of that folder, to be damaged."""
    return shutil.copytree(packed, tmp_path / "prepared")


def test_jpegs_are_close_to_the_raw_images(packed):
    images = store.open_store(packed)
    assert isinstance(images, store.JpegStore)
    assert (len(images), images.shape, images.dtype) == (COUNT, (COUNT, 16, 20, 3), np.uint8)
    for i in range(COUNT):
        difference = np.abs(images[i] - photos.fit(Drawn(smooth=True)(i), 16, 20, "crop").astype(int))
        assert difference.max() <= 6
        assert difference.mean() <= 1


KEYS = {
    "first": 0,
    "numpy scalar": np.int64(5),
    "array": np.array([3, 36, 3, -1]),
    "table": np.array([[1, 2, 3], [4, 5, 6]]),
    "none": np.array([], int),
    "mask": np.arange(COUNT) % 5 == 0,
    "slice": slice(3, 20, 4),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_jpegs_are_indexed_like_an_array(packed, key):
    images = store.open_store(packed)
    array = np.stack([images.decode(i) for i in range(COUNT)])
    assert len({image.tobytes() for image in array}) == COUNT
    assert images[key].dtype == np.uint8
    assert np.array_equal(images[key], array[key])


@pytest.mark.parametrize("key", [COUNT, -COUNT - 1, np.array([0, COUNT]), 1.5, np.ones(COUNT - 1, bool)])
def test_a_wrong_index_is_refused(packed, key):
    images = store.open_store(packed)
    with pytest.raises(IndexError):
        images[key]


@pytest.mark.parametrize("name", [store.JPEGS, store.INDEX])
@pytest.mark.parametrize("left", [None, 0, 40, 150, -1])
def test_a_missing_or_cut_file_is_refused(folder, name, left):
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if left is not None:
        (folder / name).write_bytes(content[:left])
    with pytest.raises((OSError, ValueError, EOFError)):
        store.open_store(folder)


def test_an_empty_raw_store_is_refused_in_one_sentence(tmp_path):
    one = source(1, Drawn())
    one.taxonomy.save(tmp_path / "taxonomy.json")
    one.manifest.to_parquet(tmp_path / "manifest.parquet")
    (tmp_path / "protocol.json").write_text('{"relevance": "pair"}')
    (tmp_path / "images.npy").touch()
    with pytest.raises(InputError, match="not a prepared data set"):
        manifest.open_prepared(tmp_path)
    pack.pack(one, tmp_path, JPEG, workers=1)
    assert manifest.open_prepared(tmp_path).images.shape == (1, 16, 20, 3)


def test_a_damaged_image_is_one_sentence(folder):
    offsets = np.load(folder / store.INDEX)
    with (folder / store.JPEGS).open("r+b") as file:
        file.seek(offsets[5])
        file.write(bytes(100))
    images = store.open_store(folder)
    with pytest.raises(InputError, match=r"image 5 of .*images\.bin is damaged; run `dvc repro --force prepare`"):
        images[[4, 5]]
    assert images[[4, 6]].shape == (2, 16, 20, 3)
