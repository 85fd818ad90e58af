"""What every public benchmark's photos go through alike."""

from dataclasses import replace

import pytest

from downloads import check_odd_photos, check_words, cut_off, darn_set, deepfashion, fashionai, save_odd_photos
from m3lib import prepare
from m3lib.errors import InputError
from m3lib.prepare import pack


@pytest.fixture(params=[deepfashion, fashionai, darn_set], ids=["deepfashion", "fashionai", "darn"])
def download(request, tmp_path):
    return request.param(tmp_path / "set")


def test_a_photo_that_is_cut_off_is_left_out_of_the_store(download, tmp_path):
    cut_off(download.photo(11))
    asked = download.settings(max_bad=0.02)
    source = pack.pack(prepare.read(asked), tmp_path / "prepared", asked.images, workers=1)
    total = len(download.labelled)
    assert len(source.manifest) == total - 1
    assert f"1 of {total} images can't be read" in source.notes[-2]
    assert str(download.photo(11)) in source.notes[-1]
    with pytest.raises(InputError) as raised:
        pack.pack(prepare.read(asked), tmp_path / "prepared", replace(asked.images, max_bad=0.001), workers=1)
    check_words(raised, ["images can't be read", "images.max_bad", str(download.photo(11))])


def test_grey_cmyk_and_turned_photos(download):
    names = list(download.labelled)[:3]
    save_odd_photos([download.folder / name for name in names])
    source = download.read()
    rows = {name: i for i, name in enumerate(source.manifest["image"])}
    check_odd_photos([source.load(rows[name]) for name in names])
