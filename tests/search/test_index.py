"""Index: what it finds against loops in float64, what it reads, and one sentence for each mistake."""

import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from catalogues import PICTURES, SIDE, build_index, noise_pictures, random_embeddings, random_gallery
from m3lib.data import store
from m3lib.errors import InputError
from m3lib.prepare import photos
from m3lib.retrieval import metrics
from m3lib.search import index as search
from m3lib.search.index import Index
from m3lib.training import inference
from tiny import TAXONOMY

SCORES = ["attribute", "segment", "soft_segment", "concat", "top_class", "weighted", "posterior"]
PREPARED = noise_pictures()
ITEMS = len(PREPARED.images)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """An index per network and score, made when first asked for."""
    made = {}

    def get(network="m3", score=None, **wanted):
        key = (network, score, *wanted.items())
        if key not in made:
            made[key] = build_index(tmp_path_factory.mktemp("made"), PREPARED, network, score, **wanted)
        return made[key]

    return get


def values(index, name):
    part = getattr(index.gallery, name)
    return None if part is None else np.asarray(part, np.float64)


def naive(index, score, i, j, n):
    """The score of pictures i and j under attribute n, and what each class adds to it, from the docstrings."""
    own = range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]
    f, p, phi = (values(index, name) for name in ("attribute", "posterior", "classes"))
    alike = math.fsum(f[n, i] * f[n, j])
    cos = {m: math.fsum(phi[m, i] * phi[m, j]) for m in own}
    likeliest = [max(own, key=lambda m: p[m, x]) for x in (i, j)]
    both = {m: p[m, i] * p[m, j] for m in own}
    weighted = {m: both[m] * (1 + cos[m]) / 2 for m in own}
    total = {
        "attribute": alike,
        "segment": alike + 2 * (likeliest[0] == likeliest[1]),
        "soft_segment": 0.5 * alike + 0.5 * sum(both.values()),
        "concat": sum(cos.values()) / len(cos),
        "top_class": cos[likeliest[0]],
        "weighted": sum(weighted.values()),
        "posterior": sum(both.values()),
    }[score]
    added = {"weighted": weighted, "posterior": both}.get(score, {m: p[m, j] for m in own})
    return total, TAXONOMY.class_name(max(own, key=added.get))


@pytest.mark.parametrize("kind", ["exact", "compressed"])
@pytest.mark.parametrize("score", SCORES)
def test_a_search_by_attribute_against_a_loop(indexed, score, kind):
    index = indexed("m3", score, kind=kind)
    for n, name in enumerate(TAXONOMY.names):
        i = 7 + n
        expected = {j: naive(index, score, i, j, n) for j in range(ITEMS)}
        found = index.search(index.images[i], name, k=ITEMS)  # a compressed index scores all that it returns anew
        assert sorted(match.row for match in found) == list(range(ITEMS))
        assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
        for match in found:
            total, class_ = expected[match.row]
            assert match.score == pytest.approx(total, abs=1e-6)
            assert match.class_ == class_
            assert match.path == PREPARED.manifest["image"][match.row]
        assert index.search(index.images[i], name, k=3) == found[:3]


@pytest.mark.parametrize("score", ["attribute", "segment", "concat", "top_class"])
def test_a_picture_of_the_index_finds_itself_first(indexed, score):
    index = indexed("m3", score)
    for name in index.images[:10]:
        found = index.search(name, "details", k=2)
        assert found[0].path == name or found[0].score == pytest.approx(found[1].score, abs=2e-3)


def naive_by_classes(embeddings, query, chosen, names, k):
    """(number, score) of the best, in float64, from the module's docstring."""
    p, phi, scores = embeddings.posterior.double().numpy(), embeddings.classes, []
    for j in range(len(p)):
        terms = []
        for m in chosen:
            q = None if phi is None else query.classes[0, m].double().numpy()
            cos = 1.0 if phi is None else math.fsum(q * phi[j, m].double().numpy())
            terms.append(p[j, m] * (1 + cos) / 2)
        scores.append(math.fsum(terms) / len(terms))
    tie = metrics.tie_keys(names).tolist()
    return [(j, scores[j]) for j in sorted(range(len(p)), key=lambda j: (-scores[j], tie[j]))[:k]]


@pytest.mark.parametrize("with_phi", [True, False])
@pytest.mark.parametrize("chosen", [[1], [0, 3], [2, 1, 0]])
def test_a_search_by_classes_against_a_loop_with_ties(tmp_path, with_phi, chosen):
    """Each picture stands there three times under different names, and many probabilities are equal."""
    third = random_embeddings(700)
    rows = np.random.default_rng(0).permutation(np.arange(2100) % 700)
    whole = replace(third.take(rows), rows=torch.arange(2100), classes=1.5 * third.classes[rows])  # longer than 1
    whole = replace(whole, posterior=(whole.posterior * 8).round() / 8, classes=whole.classes if with_phi else None)
    gallery = random_gallery(tmp_path / "gallery", whole)
    first = TAXONOMY.classes_of(1).start
    query = whole.take(np.array([5]))
    for k in (1, 10, 50, 2100):
        items, scores = search.by_classes(gallery, query.of(1, TAXONOMY), 1, chosen, k)
        expected = naive_by_classes(whole, query, [first + m for m in chosen], gallery.names.to_pylist(), k)
        assert items.tolist() == [j for j, _ in expected]
        np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-12)


def test_few_pictures_are_scored_where_the_bound_decides(tmp_path, monkeypatch):
    whole = random_embeddings(6000)
    gallery, scored, rule = random_gallery(tmp_path / "gallery", whole), [], search.agreement
    monkeypatch.setattr(search, "agreement", lambda q, found: scored.append(len(found.rows)) or rule(q, found))
    search.by_classes(gallery, whole.take(np.array([5])).of(1, TAXONOMY), 1, [0], 5)
    assert sum(scored) < 3000


def test_classes_say_which_made_the_match(indexed):
    index, first = indexed(), TAXONOMY.classes_of(1).start
    p, phi = values(index, "posterior"), values(index, "classes")
    for match in index.search(index.images[3], "details", classes=["hood", "collar", "hood"], k=ITEMS):
        added = {
            name: p[m, match.row] * (1 + phi[m, match.row] @ phi[m, 3]) / 2
            for name in ("hood", "collar")
            for m in [first + TAXONOMY.attributes[1].classes.index(name)]
        }
        assert match.class_ == max(added, key=added.get)
        assert match.score == pytest.approx(sum(added.values()) / 2)
    assert index.search(index.images[3], "details", classes="hood") == index.search(
        index.images[3], "details", ["hood"]
    )


@pytest.mark.parametrize("score", ["weighted", "posterior", "attribute"])
def test_the_class_of_a_match_where_classes_differ(indexed, score):
    """On random embeddings: those of a tiny network are so alike that any class would do."""
    whole = random_embeddings(200).of(1, TAXONOMY)
    p, phi = whole.posterior.double().numpy(), whole.classes.double().numpy()
    near = p * (1 + (phi * phi[4]).sum(axis=2)) / 2
    added = {"weighted": p[4] * near, "posterior": p[4] * p, "attribute": p}[score]
    query = whole.take(np.array([4]))
    assert indexed("m3", score).made_by(query, whole, []) == added.argmax(axis=1).tolist()
    expected = [[2, 0][m] for m in near[:, [2, 0]].argmax(axis=1)]
    assert indexed("m3", score).made_by(query, whole, [2, 0]) == expected


def test_equal_scores_fall_by_the_names_hash(tmp_path):
    """Pictures that are all alike: whatever k, the first by hash, not by file order."""
    alike = replace(PREPARED, images=np.repeat(PREPARED.images[:1], ITEMS, axis=0))
    index = build_index(tmp_path, alike, "asen")
    order = metrics.tie_keys(index.images).argsort().tolist()
    for k in (1, 5, ITEMS):
        assert [match.row for match in index.search(index.images[9], "colour", k=k)] == order[:k]


def test_a_name_of_the_index_is_not_embedded_anew(indexed, monkeypatch):
    index = indexed()
    monkeypatch.setattr(inference, "embed", None)
    assert index.search(index.images[4], "colour")
    with pytest.raises(TypeError):
        index.search(PREPARED.images[4], "colour")


def test_a_file_an_image_an_array_and_a_name_are_one_picture(indexed, tmp_path):
    index = indexed()
    Image.fromarray(PREPARED.images[4]).save(tmp_path / "a.png")
    by_name = index.search(index.images[4], "sleeve")
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.open(tmp_path / "a.png"), PREPARED.images[4]):
        found = index.search(image, "sleeve")
        assert [match.path for match in found] == [match.path for match in by_name]
        assert [match.score for match in found] == pytest.approx([match.score for match in by_name], abs=2e-3)


@pytest.mark.parametrize("kind", ["raw", "jpeg"])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_a_photo_is_read_as_the_store_was_packed(indexed, tmp_path, fit, kind):
    index = indexed()
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    wanted = photos.fit(photos.decode(tmp_path / "photo.png"), SIDE, SIDE, fit)
    if kind == "jpeg":
        (tmp_path / "stored.jpg").write_bytes(store.encode(wanted, "jpeg"))
        wanted = np.asarray(Image.open(tmp_path / "stored.jpg"))
    other = Index(index.folder, json.loads((index.folder / "index.json").read_text()))
    other.pictures = replace(PICTURES, fit=fit, store=kind)
    for image in (tmp_path / "photo.png", photo, Image.fromarray(photo)):
        assert np.array_equal(other.read(image), wanted)


def test_an_index_moved_elsewhere_is_whole(indexed, tmp_path, monkeypatch):
    index = indexed()
    shutil.copytree(index.folder, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    moved = Index.open("moved")
    assert moved.attributes == TAXONOMY.names
    assert moved.classes("details") == list(TAXONOMY.attributes[1].classes)
    assert moved.images == PREPARED.manifest["image"].tolist()
    for image in (index.images[2], PREPARED.images[2]):
        assert moved.search(image, "colour") == index.search(image, "colour")
    assert not [name for name in os.listdir(tmp_path / "moved") if name.endswith((".pkl", ".pt"))]


def test_where_it_looks_is_what_training_shows(indexed):
    index = indexed()
    one = replace(PREPARED, manifest=PREPARED.manifest.assign(labels=[[0, 4, 8]] * ITEMS))
    shown = inference.look(index.system, one, np.array([3]), "fp32")
    for n, name in enumerate(TAXONOMY.names):
        maps = index.look(PREPARED.images[3], name)
        np.testing.assert_allclose(maps["attribute"], shown["attribute"][0, n], rtol=1e-5)
        assert list(maps["classes"]) == index.classes(name)
        class_ = TAXONOMY.class_name([0, 4, 8][n])
        np.testing.assert_allclose(maps["classes"][class_], shown["class"][0, n], rtol=1e-5)
        assert all(found.shape == (SIDE, SIDE) for found in maps["classes"].values())


def test_networks_without_attention_or_classes(indexed):
    assert indexed("classifier").look(PREPARED.images[0], "colour") == {}
    assert set(indexed("asen").look(PREPARED.images[0], "colour")) == {"attribute"}
    assert {match.class_ for match in indexed("asen").search(PREPARED.images[0], "colour")} == {None}
    assert indexed("classifier").search(PREPARED.images[0], "colour", classes=["red"])[0].class_ == "red"


BAD = [
    ({"attribute": "colur"}, r"unknown attribute 'colur'; did you mean 'colour'"),
    ({"classes": ["gren"]}, r"unknown class of 'colour' 'gren'; did you mean 'green'"),
    ({"k": 0}, r"k is 0, but the index holds 40 pictures"),
    ({"k": 41}, r"k is 41, but the index holds 40 pictures: ask for 1 to 40"),
    ({"image": "nowhere.jpg"}, r"'nowhere\.jpg' is neither a photo that exists nor the name of a picture of the index"),
    ({"image": __file__}, r"not a photo in a known format"),
    ({"image": np.zeros((8, 8), np.uint8)}, r"uint8 array, not uint8 \(8, 8\)"),
    ({"image": np.zeros((8, 8, 3))}, r"uint8 array, not float64"),
    ({"image": np.zeros((0, 8, 3), np.uint8)}, r"uint8 array, not uint8 \(0, 8, 3\)"),
    ({"image": None}, r"not NoneType"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD)
def test_a_mistake_is_told_in_one_sentence(indexed, changed, sentence):
    asked = {"image": "003.jpg", "attribute": "colour"} | changed
    with pytest.raises(InputError, match=sentence):
        indexed().search(**asked)


def test_an_image_cut_off_is_told(indexed, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    for image in (tmp_path / "cut.jpg", Image.open(tmp_path / "cut.jpg")):
        with pytest.raises(InputError, match=r"damaged or cut off|can't be read"):
            indexed().search(image, "colour")


def test_classes_need_class_probabilities(indexed):
    with pytest.raises(InputError, match=r"variant asen gives no class probabilities.*index\.variant"):
        indexed("asen").search("003.jpg", "colour", classes=["red"])


def test_a_network_gone_wrong_is_told(indexed):
    index = Index.open(indexed().folder)
    with torch.no_grad():
        next(index.system.parameters()).fill_(torch.nan)
    with pytest.raises(InputError, match=r"embedding \(\w+\) of 'the picture' holds NaN"):
        index.search(PREPARED.images[0], "colour")


def test_rows_are_those_of_the_prepared_set(indexed):
    indexed().check(PREPARED)
    indexed(gallery="test").check(PREPARED)
    renamed = PREPARED.manifest.assign(image=PREPARED.manifest["image"] + "x")
    for other in (replace(PREPARED, manifest=renamed), noise_pictures(39)):
        with pytest.raises(InputError, match=r"other pictures than the prepared ones; run `dvc repro index`"):
            indexed().check(other)
