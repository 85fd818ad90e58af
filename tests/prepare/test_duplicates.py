"""Copies of a photo are found whatever was done to them; different photos, and colours of one product, are not."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from copied import COPIES, photo, signatures
from m3lib.prepare import duplicates
from tiny import ROOT

CATALOGUE = ROOT.parent / "shared/catalogue/images"
PHOTOS = [photo(seed) for seed in range(30)]


def found(images: list[Image.Image]) -> set[tuple[int, int]]:
    return set(map(tuple, duplicates.find(signatures(images), np.arange(len(images))).tolist()))


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_changed_copy_is_paired_with_its_original_only(change):
    assert found([*PHOTOS, *map(change, PHOTOS[:10])]) == {(i, 30 + i) for i in range(10)}


def test_different_photos_are_no_pairs():
    assert found(PHOTOS) == set()


def test_another_colour_of_a_product_is_another_photo():
    assert found([photo(seed, colour) for seed in range(10) for colour in (0, 25, 50)]) == set()


def test_equal_photos_are_paired_with_the_first_of_them():
    same = [PHOTOS[3], PHOTOS[5], PHOTOS[3], PHOTOS[3], PHOTOS[5].copy(), PHOTOS[7]]
    assert found(same) == {(0, 2), (0, 3), (1, 4)}


def test_photos_without_content_are_equal_only_if_they_look_alike():
    plain = [Image.new("RGB", size, colour) for size in ((40, 50), (8, 6)) for colour in ("white", "navy", "black")]
    assert found([*plain, *plain[:2]]) == {(0, 6), (1, 7)}


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (2000, 4)])
def test_a_photo_of_any_size_has_a_signature(size):
    images = [Image.new("RGB", size, "red"), Image.new("RGB", size, "red"), PHOTOS[0]]
    assert found(images) == {(0, 1)}


def test_few_photos():
    assert found(PHOTOS[:1]) == set()
    assert duplicates.find(signatures(PHOTOS[:1]), np.arange(0)).shape == (0, 2)


def connected(images: list[Image.Image], order: np.ndarray) -> set[frozenset[int]]:
    """The pairs in the numbers of before a reordering; only pairs of near-identical photos, whose order is theirs."""
    return {frozenset(order[list(pair)].tolist()) for pair in found([images[i] for i in order])}


def approximate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Search few photos as many: in lists, of which one is searched."""
    monkeypatch.setattr(duplicates, "EXACT_SEARCH", 30)
    monkeypatch.setattr(duplicates, "PROBES", 1)


@pytest.mark.parametrize("search", ["exact", "approximate"])
def test_the_order_of_photos_does_not_matter(monkeypatch, search):
    if search == "approximate":
        approximate(monkeypatch)
    others = [photo(seed) for seed in range(30, 90)]
    images = [*PHOTOS, *others, *map(COPIES["several changes"], PHOTOS)]
    rng, before = np.random.default_rng(0), connected(images, np.arange(len(images)))
    assert len(before) >= 15
    for _ in range(2):
        assert connected(images, rng.permutation(len(images))) == before


def test_an_approximate_search_finds_the_copies_too(monkeypatch, capfd):
    """Also without a warning of faiss on too few photos for its lists."""
    monkeypatch.setattr(duplicates, "EXACT_SEARCH", 100)
    noise = [photo(seed) for seed in range(150)]
    assert found([*noise, *map(ImageOps.mirror, noise[:5])]) == {(i, 150 + i) for i in range(5)}
    assert "WARNING" not in "".join(capfd.readouterr())


def test_only_the_named_rows_are_compared_and_the_pairs_are_their_positions():
    signed = signatures([*PHOTOS[:5], *PHOTOS[:5]])
    assert duplicates.find(signed, np.array([1, 2, 4, 6, 8, 9])).tolist() == [[0, 3], [2, 5]]


def test_photos_that_are_connected_already_are_not_aligned(monkeypatch):
    """Ten copies of one photo make 45 pairs; the nine that connect them are enough."""
    copies = [change(PHOTOS[0]) for change in (COPIES["quality 50"], COPIES["cropped"], COPIES["twice the size"])]
    images = [*PHOTOS[:3], *copies, *(COPIES["quality 90"](image) for image in copies), *map(ImageOps.mirror, copies)]
    expected = duplicates.connect(len(images), np.array(sorted(found(images))))
    assert len(set(expected)) == 3
    counts, real = [], duplicates.compare
    monkeypatch.setattr(duplicates, "compare", lambda one, other: counts.append(len(one)) or real(one, other))
    monkeypatch.setattr(duplicates, "BLOCK", 1)
    pairs = found(images)
    assert (duplicates.connect(len(images), np.array(sorted(pairs))) == expected).all()
    assert len(pairs) == len(images) - 3
    assert sum(counts) < 2 * len(pairs)


@pytest.mark.skipif(not CATALOGUE.is_dir(), reason=f"the shared catalogue of photos is not at {CATALOGUE}")
def test_copies_of_real_product_photos_are_found():
    photos = [Image.open(path).convert("RGB") for path in sorted(CATALOGUE.iterdir())[:1200:12]]
    kinds = ["quality 50", "quality 90", "half the size", "twice the size", "cropped", "mirrored", "png"]
    images = [*photos, *(COPIES[kind](image) for kind in kinds for image in photos[:10])]
    original = np.array([*range(100), *list(range(10)) * len(kinds)])
    pairs = duplicates.find(signatures(images), np.arange(len(images)))
    assert (original[pairs[:, 0]] == original[pairs[:, 1]]).all()
    group = duplicates.connect(len(images), pairs)
    assert (group[100:] == original[100:]).mean() >= 0.95
