"""Index: results against loops in float64, how images are read, and one sentence for each mistake."""

import gzip
import io
import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile, SpooledTemporaryFile
from typing import BinaryIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from catalogues import IMAGE_SETTINGS, SIDE, build_index, noise_images, random_embeddings
from m3lib.data import store
from m3lib.errors import InputError
from m3lib.prepare import photos
from m3lib.retrieval import metrics
from m3lib.retrieval.scores import VECTORS
from m3lib.search import Index
from m3lib.training import inference
from tiny import TAXONOMY

PREPARED = noise_images()
ITEMS = len(PREPARED.images)
JPEG = store.encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), "jpeg")


def values(index):
    """f_n (I, N, D), p_m (I, M) and phi_m (I, M, d) of the catalogue, in float64."""
    embeddings = index.engine.catalogue.embeddings
    return [t.double().numpy() for t in (embeddings.attribute, embeddings.posterior, embeddings.classes)]


def naive(index, score, i, j, n):
    """The score of images i and j by attribute n, and the class that adds most to it, from the docstrings."""
    classes = range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]
    f, p, phi = values(index)
    cos_f = math.fsum(f[i, n] * f[j, n])
    cos = {m: math.fsum(phi[i, m] * phi[j, m]) for m in classes}
    likeliest = [max(classes, key=lambda m: p[x, m]) for x in (i, j)]
    both = {m: p[i, m] * p[j, m] for m in classes}
    weighted = {m: both[m] * (1 + cos[m]) / 2 for m in classes}
    total = {
        "attribute": cos_f,
        "segment": cos_f + 2 * (likeliest[0] == likeliest[1]),
        "soft_segment": 0.5 * cos_f + 0.5 * sum(both.values()),
        "concat": sum(cos.values()) / len(cos),
        "top_class": cos[likeliest[0]],
        "weighted": sum(weighted.values()),
        "posterior": sum(both.values()),
        "open": sum(both.values()) + 0.3 * cos_f,
    }[score]
    added = {"weighted": weighted} | dict.fromkeys(["posterior", "open", "soft_segment"], both)
    added = added.get(score, {m: p[j, m] for m in classes})
    return total, TAXONOMY.class_name(max(classes, key=added.get))


@pytest.mark.parametrize("kind", ["exact", "compressed"])
@pytest.mark.parametrize("score", VECTORS)
def test_a_search_by_attribute_against_a_loop(indexed, score, kind):
    index = indexed("m3", score, kind=kind)
    for n, name in enumerate(TAXONOMY.names):
        i = 7 + n
        expected = {j: naive(index, score, i, j, n) for j in range(ITEMS)}
        matches = index.search(index.images[i], name, k=ITEMS)
        assert sorted(match.row for match in matches) == list(range(ITEMS))
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)
        for match in matches:
            total, class_ = expected[match.row]
            assert match.score == pytest.approx(total, abs=1e-6)
            assert match.class_ == class_
            assert match.path == PREPARED.manifest["image"][match.row]
        assert index.search(index.images[i], name, k=3) == matches[:3]


def test_the_score_by_several_classes_is_the_mean_of_the_scores_by_one(indexed):
    def scores(classes):
        return {match.row: match.score for match in indexed().search("003.jpg", "details", classes, k=ITEMS)}

    hood, collar = scores("hood"), scores(["collar"])
    mean = {row: (hood[row] + collar[row]) / 2 for row in hood}
    assert scores(["hood", "collar", "hood"]) == pytest.approx(mean)
    for match in indexed().search("003.jpg", "details", ["hood", "collar"]):
        assert match.class_ == ("hood" if hood[match.row] >= collar[match.row] else "collar")


def test_a_search_by_classes_without_class_spaces_compares_by_the_attribute_embedding(indexed):
    index = indexed("duet", "open")
    embeddings = index.engine.catalogue.embeddings
    f, p = embeddings.attribute.double().numpy(), embeddings.posterior.double().numpy()
    first = TAXONOMY.classes_of(1).start
    for match in index.search("003.jpg", "details", ["pocket", "belt"], k=ITEMS):
        cosine = math.fsum(f[3, 1] * f[match.row, 1])
        expected = (p[match.row, first] + p[match.row, first + 2]) / 2 * (1 + cosine) / 2
        assert match.score == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", ["weighted", "posterior", "attribute"])
def test_the_class_of_a_match_where_classes_differ(indexed, score):
    """On random embeddings: those of a tiny network are so similar that any class would do."""
    embeddings = random_embeddings(200).of_attribute(1, TAXONOMY)
    p, phi = embeddings.posterior.double().numpy(), embeddings.classes.double().numpy()
    agreement = p * (1 + (phi * phi[4]).sum(axis=2)) / 2
    added = {"weighted": p[4] * agreement, "posterior": p[4] * p, "attribute": p}[score]
    query = embeddings.take(np.array([4]))
    assert indexed("m3", score).matched_classes(query, embeddings, []) == added.argmax(axis=1).tolist()
    expected = [[2, 0][m] for m in agreement[:, [2, 0]].argmax(axis=1)]
    assert indexed("m3", score).matched_classes(query, embeddings, [2, 0]) == expected


def test_ties_are_broken_by_a_hash_of_the_name(tmp_path):
    """Identical images: for every k, the smallest hashes come first, not the first rows."""
    identical = replace(PREPARED, images=np.repeat(PREPARED.images[:1], ITEMS, axis=0))
    index = build_index(tmp_path, identical, "asen")
    order = metrics.tie_keys(index.images).argsort().tolist()
    for k in (1, 5, ITEMS):
        assert [match.row for match in index.search(index.images[9], "colour", k=k)] == order[:k]


def test_a_file_a_pil_image_an_array_and_a_name_give_the_same_results(indexed, tmp_path, monkeypatch):
    index = indexed()
    Image.fromarray(PREPARED.images[4]).save(tmp_path / "a.png")
    with monkeypatch.context() as patch:
        patch.setattr(inference, "predict", None)  # an image of the index is not embedded again
        by_name = index.search(index.images[4], "sleeve")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), PREPARED.images[4]):
        matches = index.search(image, "sleeve")
        assert [match.path for match in matches] == [match.path for match in by_name]
        assert [match.score for match in matches] == pytest.approx([match.score for match in by_name], abs=2e-3)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_photo_is_read_with_the_settings_of_the_image_store(indexed, tmp_path, fit, kind):
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    expected = photos.fit(photo, SIDE, SIDE, fit)
    if kind == "jpeg":
        expected = np.asarray(Image.open(io.BytesIO(store.encode(expected, "jpeg"))))
    index = replace(indexed(), image_settings=replace(IMAGE_SETTINGS, fit=fit, format=kind))
    for image in (tmp_path / "photo.png", photo, Image.fromarray(photo)):
        assert np.array_equal(index.read(image), expected)


def edit_settings(folder, **changes):
    content = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(content | changes))


def test_an_index_can_be_moved(indexed, tmp_path, monkeypatch):
    index = indexed()
    shutil.copytree(index.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    for image in (index.images[2], PREPARED.images[2]):
        assert Index.open("moved").search(image, "colour") == index.search(image, "colour")


DAMAGES = [
    (lambda folder, other: shutil.rmtree(folder), r"no search index in .*: run `dvc repro index`"),
    (lambda folder, other: (folder / "index.json").write_text("{"), r"JSONDecodeError"),
    (lambda folder, other: edit_settings(folder, format=1), r"it has format 1, but m3lib reads 3\)"),
    (lambda folder, other: edit_settings(folder, variant={}), r"index\.json is damaged"),
    (lambda folder, other: (folder / "images.parquet").unlink(), r"FileNotFoundError.*images\.parquet"),
    (lambda folder, other: (folder / "images.parquet").write_bytes(bytes(999)), r"Parquet"),
    (lambda folder, other: (folder / "embeddings.safetensors").write_bytes(bytes(999)), r"as embeddings"),
    (lambda folder, other: (folder / "taxonomy.json").write_bytes(bytes(999)), r"taxonomy\.json|JSON"),
    (lambda folder, other: (folder / "1.faiss").write_bytes(b"cut"), r"1\.faiss"),
    (lambda folder, other: shutil.copy(other / "model.safetensors", folder), r"doesn't hold the weights of m3"),
    (lambda folder, other: shutil.copy(other / "0.faiss", folder), r"its files are of different indexes"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGES)
def test_a_damaged_folder_is_reported_in_one_sentence(indexed, tmp_path, damage, reason):
    shutil.copytree(indexed().folder, tmp_path / "index")
    damage(tmp_path / "index", indexed("asen", images="test").folder)
    with pytest.raises(InputError, match=reason) as error:
        Index.open(tmp_path / "index")
    assert "run `dvc repro index`" in str(error.value)


def test_attention_maps_are_those_that_training_shows(indexed):
    index = indexed()
    labelled = replace(PREPARED, manifest=PREPARED.manifest.assign(labels=[[0, 4, 8]] * ITEMS))
    expected = inference.attention_maps(index.system, labelled, np.array([3]), "fp32")
    for n, name in enumerate(TAXONOMY.names):
        class_ = TAXONOMY.class_name([0, 4, 8][n])
        maps = index.attention_maps(PREPARED.images[3], name, class_)
        assert list(maps) == [name, f"{name}: {class_}"]
        np.testing.assert_allclose(maps[name], expected["attribute"][0, n], rtol=1e-5)
        np.testing.assert_allclose(maps[f"{name}: {class_}"], expected["class"][0, n], rtol=1e-5)


def test_networks_without_attention_or_classes(indexed):
    assert indexed("classifier").attention_maps(PREPARED.images[0], "colour", "red") == {}
    assert indexed("classifier").search(PREPARED.images[0], "colour", classes="red")[0].class_ == "red"
    asen = indexed("asen", images="test")
    assert set(asen.attention_maps(PREPARED.images[0], "colour", "red")) == {"colour"}
    assert {match.class_ for match in asen.search(PREPARED.images[0], "colour")} == {None}
    with pytest.raises(InputError, match=r"variant asen has no class probabilities.*index\.variant"):
        asen.search(PREPARED.images[0], "colour", classes=["red"])


ARRAYS = r"can't be read .*: give a file, its bytes, a PIL image or an \(H, W, 3\) uint8 array"
PIXELS = np.zeros((8, 8, 3), np.uint8)
MISTAKES = [
    ({"attribute": "colur"}, r"unknown attribute 'colur'; did you mean 'colour'"),
    ({"attribute": None}, r"unknown attribute None; did you mean 'colour', 'details', 'sleeve'\?"),
    ({"attribute": 1}, r"unknown attribute 1; did you mean"),
    ({"attribute": ["colour"]}, r"unknown attribute \['colour'\]; did you mean 'colour'"),
    ({"attribute": np.array(["colour", "sleeve"])}, r"unknown attribute array"),
    ({"attribute": "colour\ud800"}, r"unknown attribute 'colour\\ud800'; did you mean 'colour'"),
    ({"classes": ["gren"]}, r"unknown class of 'colour' 'gren'; did you mean 'green'"),
    ({"classes": 2}, r"classes is 2: give the name of a class, or a list of names"),
    ({"classes": True}, r"classes is True: give the name"),
    ({"classes": [2]}, r"unknown class of 'colour' 2; did you mean"),
    ({"classes": [None]}, r"unknown class of 'colour' None; did you mean"),
    ({"classes": [["red"]]}, r"classes is \[\['red'\]\]: give the name"),
    ({"classes": {"red", 3}}, r"unknown class of 'colour' 3"),
    ({"classes": np.array([0, 1])}, r"unknown class of 'colour' np\.int64\(0\)"),
    *(
        ({"k": k}, rf"^k is {shown}, but the index holds 40 images: use a whole number from 1 to 40$")
        for k, shown in (
            (41, 41),
            (0, 0),
            (-1, -1),
            ("5", "'5'"),
            ("many", "'many'"),
            (5.5, r"5\.5"),
            (None, None),
            (True, True),
            (np.True_, r"np\.True_"),
            (10**400, "a number of 1329 bits"),
            (math.nan, "nan"),
            ((5,), r"\(5,\)"),
        )
    ),
    ({"image": "nowhere.jpg"}, r"'nowhere\.jpg' is neither a photo that exists nor the name of an image of the index"),
    ({"image": "x\ud800.jpg"}, r"'x\\ud800\.jpg' is neither a photo that exists nor the name"),
    ({"image": "x\0.jpg"}, r"'x\\x00\.jpg' is neither a photo"),
    ({"image": "x" * 5000}, r"is neither a photo"),
    ({"image": "."}, r"'\.' is neither a photo"),
    ({"image": ""}, r"'' is neither a photo"),
    ({"image": "https://example.org/a.jpg"}, r"is neither a photo"),
    ({"image": 40}, r"the index holds no image of row 40 of the manifest: name another one"),
    ({"image": -1}, r"no image of row -1"),
    ({"image": 10**30}, r"no image of row 1000"),
    ({"image": True}, rf"bool of shape \(\) and type bool.*{ARRAYS[-30:]}"),
    ({"image": __file__}, r"test_index\.py': a text file, not a photo: download it again"),
    ({"image": b"some text"}, r"'the 9 bytes given': a text file, not a photo"),
    ({"image": b"<p>Not found.</p>.htm"}, r"'the 21 bytes given': a text file"),
    ({"image": b"photo.jpg"}, r"the bytes given are the name 'photo\.jpg': give a path as text"),
    ({"image": bytearray("/kätzchen/1.JPEG".encode())}, r"the name '/kätzchen/1\.JPEG': give a path as text"),
    ({"image": memoryview(b"C:\\a b.png")}, r"give a path as text"),
    ({"image": b""}, r"'the 0 bytes given': an empty file, not a photo"),
    ({"image": io.BytesIO(JPEG[:900])}, r"'the open file': damaged or cut off"),
    ({"image": io.StringIO("photo")}, r"the open file can't be read \(.*\): open it with mode 'rb'"),
    ({"image": ["003.jpg"]}, r"list of shape \(1,\) and type <U7"),
    ({"image": [[0, 255], [255]]}, ARRAYS),
    ({"image": {}}, ARRAYS),
    ({"image": None}, r"NoneType of shape \(\) and type object"),
    ({"image": np.zeros((8, 8, 3))}, r"ndarray of shape \(8, 8, 3\) and type float64"),
    ({"image": np.zeros((3, 8, 8), np.uint8)}, r"shape \(3, 8, 8\) and type uint8"),
    ({"image": np.zeros((8, 8, 2), np.uint8)}, r"shape \(8, 8, 2\)"),
    ({"image": torch.zeros(3, 8, 8)}, r"Tensor of shape \(3, 8, 8\) and type float32"),
    ({"image": torch.zeros(8, 8, 3, requires_grad=True)}, ARRAYS),
    ({"image": Image.open(io.BytesIO(JPEG[:900]))}, r"can't be read .*truncated"),
    ({"image": np.zeros((0, 8, 3), np.uint8)}, r"shape \(0, 8, 3\)"),
]


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES)
def test_a_mistake_is_reported_in_one_sentence(indexed, mistake, sentence):
    with pytest.raises(InputError, match=sentence):
        indexed().search(**{"image": "003.jpg", "attribute": "colour"} | mistake)


@pytest.mark.parametrize("k", [np.int64(3), np.uint8(3), torch.tensor(3), np.array(3)])
def test_a_number_of_results_of_another_type(indexed, k):
    assert indexed().search("003.jpg", "colour", k=k) == indexed().search("003.jpg", "colour", k=3)


def test_classes_of_other_types(indexed):
    one, two, none = ([*names] for names in (["hood"], ["hood", "collar"], []))
    expected = {len(names): indexed().search("003.jpg", "details", names) for names in (one, two, none)}
    given = {
        0: (None, "", (), set(), np.array([]), pd.Series(dtype=str)),
        1: ("hood", np.str_("hood"), ("hood",), {"hood"}, np.array(["hood"]), ["hood", "hood"]),
        2: (
            tuple(two),
            {*two},
            frozenset(two),
            np.array(two),
            pd.Series(two),
            iter(two),
            dict.fromkeys(two),
            two[::-1],
        ),
    }
    for number, all_classes in given.items():
        for classes in all_classes:
            assert indexed().search("003.jpg", "details", classes) == expected[number], classes


@contextmanager
def pipe(data: bytes) -> Iterator[BinaryIO]:
    """Open a pipe, a file that can't seek, which gives the data (at most 64 kB)."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stream:
        with open(writing, "wb") as file:
            file.write(data)
        yield stream


def test_images_of_other_types(indexed, tmp_path):
    pixels = PREPARED.images[4]
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path)
    data = path.read_bytes()
    alpha = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    expected = indexed().search(pixels, "sleeve")
    with (
        path.open("rb") as file,
        pipe(data) as stream,
        NamedTemporaryFile() as named,
        SpooledTemporaryFile() as spooled,
    ):
        for temporary in (named, spooled):
            temporary.write(data)
        images = (str(path), path, np.str_(path), data, bytearray(data), memoryview(data))
        for image in (
            *images,
            *(io.BytesIO(data), file, named, spooled, stream, gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(data)))),
            torch.from_numpy(pixels.copy()),
            alpha,
            Image.fromarray(alpha),
            np.asfortranarray(pixels),
        ):
            assert indexed().search(image, "sleeve") == expected, image
    grey = pixels[:, :, 0]
    expected = indexed().search(np.dstack([grey] * 3), "sleeve")
    for image in (grey, grey[:, :, None], Image.fromarray(grey), Image.fromarray(grey.astype(np.uint16) * 257)):
        assert indexed().search(image, "sleeve") == expected


def test_an_open_file_that_is_no_photo_is_named(indexed):
    closed = io.BytesIO(JPEG)
    closed.close()
    with pipe(b"<html>not found") as page:
        for file, sentence in (
            (page, r"^'the open file': an HTML page, not a photo"),
            (closed, r"^the open file can't be read \(I/O operation on closed file"),
        ):
            with pytest.raises(InputError, match=sentence):
                indexed().search(file, "sleeve")


def test_a_clear_pixel_is_white_and_a_dark_picture_of_16_bits_is_not_black(indexed):
    clear = np.zeros((SIDE, SIDE, 4), np.uint8)
    assert (indexed().read(clear) == 255).all()
    fractions = Image.fromarray(np.full((SIDE, SIDE), 0.5, np.float32))
    assert (indexed().read(fractions) == 128).all()


def test_a_file_goes_before_the_image_of_its_name_and_a_row_is_never_a_file(indexed, tmp_path, monkeypatch):
    index = indexed()
    monkeypatch.chdir(tmp_path)
    by_name = index.search("004.jpg", "sleeve")
    for row in (4, np.int64(4)):
        assert index.search(row, "sleeve") == by_name
    Image.fromarray(PREPARED.images[9]).save("004.png")
    (tmp_path / "004.png").rename("004.jpg")
    expected = index.search(PREPARED.images[9], "sleeve")
    for image in ("004.jpg", Path("004.jpg"), tmp_path / "004.jpg"):
        assert index.search(image, "sleeve") == expected
    assert index.search(4, "sleeve") == by_name
    (tmp_path / "005.jpg").mkdir()  # a folder is no photo
    assert index.search("005.jpg", "sleeve") == index.search(5, "sleeve")


def test_rows_of_an_index_of_some_images(indexed):
    index = indexed(images="test")
    row = int(index.rows[5])
    assert row != 5
    assert index.search(row, "colour") == index.search(index.images[5], "colour")
    missing = next(iter(set(range(ITEMS)) - set(index.rows.tolist())))
    with pytest.raises(InputError, match=rf"no image of row {missing} of the manifest"):
        index.search(missing, "colour")


def test_the_index_holds_no_pixels(indexed):
    for image, shown in (("003.jpg", "'003.jpg'"), (3, "3")):
        with pytest.raises(InputError, match=rf"holds no pixels of its image {shown}: give a file"):
            indexed().attention_maps(image, "colour")


# threads


def test_the_prepared_set_of_an_index(indexed):
    indexed().check(PREPARED)
    indexed(images="test").check(PREPARED)
    renamed = PREPARED.manifest.assign(image=PREPARED.manifest["image"] + "x")
    for other in (replace(PREPARED, manifest=renamed), noise_images(39)):
        with pytest.raises(InputError, match=r"other images than the prepared ones; run `dvc repro index`"):
            indexed().check(other)
