"""The engine lancedb, on the real one: the answers of faiss, filters, photos that come and go, what is refused."""

import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from catalogues import build_index, catalogue_of, noise_images, random_embeddings
from m3lib import config
from m3lib.errors import InputError
from m3lib.retrieval.scores import VECTORS, candidate_vectors, query_vectors
from m3lib.search import Index, lance_engine, lance_table
from m3lib.search.lance_engine import LanceEngine
from m3lib.training import inference
from m3lib.validation import general_faults
from tiny import SETTINGS, TAXONOMY, VALUES

PREPARED = noise_images()
ITEMS = len(PREPARED.images)
rng = np.random.default_rng(0)
COLUMNS = pd.DataFrame({
    "gender": rng.choice(["women", "men", "women's", None], ITEMS),
    "price": np.where(rng.random(ITEMS) < 0.2, np.nan, rng.integers(1, 100, ITEMS)),
})  # fmt: skip
LANCE = {"engine": "lancedb"}


@pytest.fixture(scope="module")
def filtered(tmp_path_factory):
    """An index with columns, which no test changes."""
    return build_index(tmp_path_factory.mktemp("filtered"), PREPARED, "m3", columns=COLUMNS, **LANCE)


@pytest.fixture
def changing(filtered, tmp_path):
    """A copy of it."""
    shutil.copytree(filtered.folder, tmp_path / "index")
    return Index.open(tmp_path / "index")


def as_pairs(matches):
    return {match.path: match.score for match in matches}


@pytest.mark.parametrize("score", VECTORS)
def test_a_search_gives_the_answers_of_faiss(indexed, score):
    lance, exact = indexed("m3", score, **LANCE), indexed("m3", score, kind="exact")
    assert lance.images == exact.images
    assert lance.rows.tolist() == exact.rows.tolist()
    lance.check(PREPARED)
    for image in ("007.jpg", 11, PREPARED.images[3]):
        for name in TAXONOMY.names:
            for k in (1, 7, ITEMS):
                ours, theirs = lance.search(image, name, k=k), exact.search(image, name, k=k)
                assert [match.score for match in ours] == pytest.approx([match.score for match in theirs], abs=1e-5)
                scores = as_pairs(exact.search(image, name, k=ITEMS))
                assert as_pairs(ours) == pytest.approx({match.path: scores[match.path] for match in ours}, abs=1e-5)
                rows = {match.path: (match.row, match.class_) for match in exact.search(image, name, k=ITEMS)}
                assert all((match.row, match.class_) == rows[match.path] for match in ours)


@pytest.mark.parametrize("network", ["m3", "duet", "classifier"])
def test_a_search_by_classes_gives_the_answers_of_faiss(indexed, network, monkeypatch):
    lance, exact = indexed(network, **LANCE), indexed(network, kind="exact")
    for classes in ("hood", ["pocket", "belt"]):
        for k in (1, 7, ITEMS):
            assert lance.search("003.jpg", "details", classes, k) == exact.search("003.jpg", "details", classes, k)


def test_a_search_by_classes_goes_on_until_no_other_image_can_be_among_the_best(tmp_path):
    """On 3,000 random embeddings, of which the first list holds 1,024, with probabilities that say little."""
    embeddings = random_embeddings(3000)
    flat = 0.5 + 0.01 * torch.rand(embeddings.posterior.shape, generator=torch.Generator().manual_seed(1))
    catalogue = catalogue_of(replace(embeddings, posterior=flat.half()))
    engine = built(tmp_path, catalogue, "weighted", "exact")
    query = catalogue.for_attribute(np.array([5]), 1)
    for classes in ([0], [3, 1]):
        items, scores = catalogue.rank_by_classes(query, 1, classes, 20)
        found = engine.by_classes(query, 1, classes, 20, "")
        assert found.names == [f"{i}.jpg" for i in items]
        np.testing.assert_allclose(found.scores, scores)


def built(folder, catalogue, score, kind, columns=None):
    settings = replace(SETTINGS.index, kind=kind, engine="lancedb")
    (folder / "embeddings.safetensors").touch()
    columns = pd.DataFrame(index=range(len(catalogue))) if columns is None else columns
    content = LanceEngine.build(folder, catalogue, score, settings, 0, columns, "mark")
    return LanceEngine.open(folder, content, TAXONOMY, score)


def test_recall_of_a_compressed_index(tmp_path):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((100, 24))
    rows = centres[rng.integers(100, size=4000)] + 0.5 * rng.standard_normal((4000, 24))
    f = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).half()[:, None].expand(-1, 3, -1)
    catalogue = catalogue_of(replace(random_embeddings(4000), attribute=f, posterior=None, classes=None))
    engine = built(tmp_path, catalogue, "attribute", "compressed")
    assert all(probe is not None and probe[0] < 63 for probe in engine.probes)  # fewer than all cells
    for n in range(3):
        own = catalogue.embeddings.of_attribute(n, TAXONOMY)
        exact = query_vectors("attribute", own.at(slice(0, 40))) @ candidate_vectors("attribute", own).T
        best = exact.topk(100).indices.tolist()
        hits = 0
        for i, truth in enumerate(best):
            found = engine.by_attribute(query_vectors("attribute", own.at(slice(i, i + 1)))[0].numpy(), n, 100, "")
            hits += len({f"{j}.jpg" for j in truth} & {*found.names})
            np.testing.assert_allclose(found.scores, [exact[i, int(x[:-4])] for x in found.names], atol=1e-5)
        assert hits > 0.95 * 40 * 100


CONDITIONS = [
    ("price < 50", lambda c: c["price"] < 50),
    ("gender = 'women' AND price >= 20", lambda c: (c["gender"] == "women") & (c["price"] >= 20)),
    ("gender = 'women''s' OR price IS NULL", lambda c: (c["gender"] == "women's") | c["price"].isna()),
    ("price > 1000", lambda c: c["price"] > 1000),
]


@pytest.mark.parametrize(("where", "chosen"), CONDITIONS)
def test_a_filtered_search_ranks_what_the_condition_leaves(filtered, where, chosen):
    left = {name for name, keep in zip(filtered.images, chosen(COLUMNS), strict=True) if keep}
    for classes in ((), "hood"):
        everything = filtered.search("003.jpg", "details", classes, k=ITEMS)
        expected = [match for match in everything if match.path in left]
        assert filtered.search("003.jpg", "details", classes, k=ITEMS, where=where) == expected
        assert filtered.search("003.jpg", "details", classes, k=2, where=where) == expected[:2]


@pytest.mark.parametrize("where", ["prize < 5", "price <", "gender = women", "price < 5; gender = 'men'"])
def test_a_wrong_condition_is_told_with_the_columns(filtered, where):
    for classes in ((), "hood"):
        with pytest.raises(InputError, match=r"the condition .* can't be used .*; the columns: gender, price$"):
            filtered.search("003.jpg", "details", classes, where=where)
    assert len(filtered) == ITEMS


def test_a_photo_is_found_once_it_is_added_and_gone_once_it_is_deleted(changing):
    photo = noise_images(50).images[45]
    for n, attribute in enumerate(TAXONOMY.names):
        name = f"new's {n}.jpg"
        changing.add(photo, name, {"gender": "men", "price": 3})
        assert len(changing) == ITEMS + 1
        match = {match.path: match for match in changing.search(photo, attribute, k=ITEMS + 1)}[name]
        assert match.row is None
        assert changing.search(name, attribute, k=3) == changing.search(photo, attribute, k=3)
        assert name in as_pairs(changing.search(photo, attribute, k=5, where="price = 3 AND gender = 'men'"))
        assert changing.images[-1] == name
        changing.check(PREPARED)
        changing.delete(name)
        assert name not in as_pairs(changing.search(photo, attribute, k=ITEMS))
    assert changing.images == PREPARED.manifest["image"].tolist()


def test_a_photo_of_the_same_name_is_replaced(changing):
    photos = noise_images(50).images
    changing.add(photos[45], "new.jpg", {"price": 3})
    changing.add(photos[46], "new.jpg")
    assert len(changing) == ITEMS + 1
    assert not changing.search(photos[45], "colour", where="price = 3")
    score = as_pairs(changing.search(photos[46], "colour", k=ITEMS + 1))["new.jpg"]
    assert score == pytest.approx(as_pairs(changing.search("new.jpg", "colour", k=ITEMS + 1))["new.jpg"], abs=2e-3)


def test_changes_that_are_refused(changing, indexed, tmp_path):
    with pytest.raises(InputError, match=r"the index has no column 'prize'; its columns: gender, price"):
        changing.add(PREPARED.images[0], "a.jpg", {"prize": 3})
    for value in ("cheap", [1], {"a": 1}, pd.Timestamp("2020-01-01")):
        with pytest.raises(InputError, match=r"a value of .* does not fit its column"):
            changing.add(PREPARED.images[0], "a.jpg", {"price": value})
    with pytest.raises(InputError, match="is neither a photo that exists nor the name of an image of the index"):
        changing.search("x\ud800.jpg", "colour")
    with pytest.raises(InputError, match=r"give the photo a name"):
        changing.add(PREPARED.images[0])
    with pytest.raises(InputError, match=r"'b\.jpg' is not the name of an image of the index"):
        changing.delete("b.jpg")
    assert len(changing) == ITEMS
    frozen = "an index of the engine faiss can't be {}: set index.engine to lancedb"
    for wrong, sentence in (
        (lambda: indexed().add(PREPARED.images[0], "a.jpg"), "changed"),
        (lambda: indexed().delete("003.jpg"), "changed"),
        (lambda: indexed().search("003.jpg", "colour", where="price < 3"), "filtered by columns"),
        (lambda: indexed().search("003.jpg", "colour", "red", where="price < 3"), "filtered by columns"),
    ):
        with pytest.raises(InputError, match=frozen.format(sentence)):
            wrong()


def test_a_table_that_is_not_there_or_another_models_is_told(changing, indexed):
    folder = changing.folder
    shutil.rmtree(folder / "lance")
    with pytest.raises(InputError, match=r"the table in .*lance can't be used \(.*not found\): is it there"):
        Index.open(folder)
    shutil.copytree(indexed("asen", **LANCE).folder / "lance", folder / "lance", dirs_exist_ok=True)
    with pytest.raises(InputError, match=r"the table in .*lance can't be used \(.*not found\): is it there"):
        Index.open(folder)


def test_a_place_holds_the_tables_of_several_models_and_scores(tmp_path):
    """A rebuild replaces the table of the same model and score only."""
    place = str(tmp_path / "store")
    index = build_index(tmp_path / "first", PREPARED, "m3", "concat", uri=place, **LANCE)
    before = index.search("003.jpg", "colour")
    index.add(PREPARED.images[0], "new.jpg")
    assert not (index.folder / "lance").exists()
    build_index(tmp_path / "second", PREPARED, "asen", uri=place, **LANCE)
    build_index(tmp_path / "third", PREPARED, "m3", "posterior", uri=place, **LANCE)
    assert len(Index.open(index.folder)) == ITEMS + 1
    assert len(build_index(tmp_path / "first", PREPARED, "m3", "concat", uri=place, **LANCE)) == ITEMS
    assert Index.open(index.folder).search("003.jpg", "colour") == before


@pytest.mark.parametrize("name", ["row", "vector_0", "_distance", "size.eu", "price eur", ""])
def test_a_column_that_a_condition_can_not_name_is_refused(name):
    settings = config.parse(VALUES | {"index": VALUES["index"] | {"columns": [name]}})
    (fault,) = general_faults(settings)
    assert fault.startswith("index.columns: a condition can't name ")
    assert fault.endswith("rename the column")


CHILD = """
import sys
from m3lib.search import Index
import numpy as np

index, prefix, count = Index.open(sys.argv[1]), sys.argv[2], int(sys.argv[3])
photo = np.zeros((32, 32, 3), np.uint8)
for number in range(count):
    index.add(photo, f"{prefix}{number}.jpg")
    print(f"{prefix}{number}.jpg", flush=True)
"""


def child(folder, prefix, count):
    command = [sys.executable, "-c", CHILD, str(folder), prefix, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=config.find_root())


def test_what_was_acknowledged_survives_a_kill_and_two_processes_add_at_once(changing):
    killed, other = child(changing.folder, "a", 10_000), child(changing.folder, "b", 5)
    acknowledged = [killed.stdout.readline().strip() for _ in range(4)]
    os.kill(killed.pid, signal.SIGKILL)
    acknowledged += killed.stdout.read().split()
    acknowledged += other.communicate()[0].split()
    assert {f"b{number}.jpg" for number in range(5)} <= {*acknowledged}
    index = Index.open(changing.folder)
    added = [name for name in index.images if name not in {*PREPARED.manifest["image"]}]
    assert {*acknowledged} <= {*added}
    assert len(added) <= len(acknowledged) + 1  # and the one that was being added
    assert len(added) == len({*added})
    assert len(index.search("003.jpg", "colour", k=len(index))) == len(index)


def test_changes_are_taken_into_the_index_now_and_then(changing, monkeypatch):
    """Each is a version and a file of its own, which would make searches slower and slower; whoever makes them."""
    monkeypatch.setattr(lance_engine, "TIDY", 4)
    for number in range(12):
        Index.open(changing.folder).add(PREPARED.images[0], f"new{number}.jpg")
    assert Index.open(changing.folder).engine.table.stats()["fragment_stats"]["num_fragments"] <= 5
    assert len(Index.open(changing.folder)) == ITEMS + 12


def test_writers_that_disturb_each_others_tidying_lose_nothing(changing, monkeypatch):
    monkeypatch.setattr(lance_engine, "TIDY", 2)
    indexes = [Index.open(changing.folder) for _ in range(3)]
    embeddings = inference.embed(changing.system, PREPARED, np.array([0]), "fp32")

    def write(number):
        for i in range(8):
            indexes[number].engine.add(f"{number} {i}.jpg", embeddings, {})

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    assert {f"{n} {i}.jpg" for n in range(3) for i in range(8)} <= {*Index.open(changing.folder).images}


def test_two_processes_that_add_the_same_names_leave_one_row_of_each(changing):
    for process in [child(changing.folder, "a", 6), child(changing.folder, "a", 6)]:
        process.communicate()
    names = Index.open(changing.folder).images
    assert sorted(name for name in names if name.startswith("a")) == [f"a{number}.jpg" for number in range(6)]


@pytest.mark.parametrize("small", [0, 10**6])
def test_a_compressed_index_gives_as_many_as_there_are(tmp_path, monkeypatch, small):
    """Of a condition that follows the vectors, and for more images than the cells that are read hold."""
    monkeypatch.setattr(lance_table, "FILTERED", small)
    rng = np.random.default_rng(0)
    which = rng.integers(40, size=2000)
    rows = rng.standard_normal((40, 24))[which] + 0.3 * rng.standard_normal((2000, 24))
    f = torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).half()[:, None].expand(-1, 3, -1)
    catalogue = catalogue_of(replace(random_embeddings(2000), attribute=f, posterior=None, classes=None))
    engine = built(tmp_path, catalogue, "attribute", "compressed", pd.DataFrame({"group": which.astype(float)}))
    assert engine.probes[0] is not None
    own = catalogue.embeddings.of_attribute(0, TAXONOMY)
    query = query_vectors("attribute", own.at(slice(7, 8)))[0].numpy()
    assert len(engine.by_attribute(query, 0, 2000, "").names) == 2000
    for group in range(0, 40, 7):
        left = [f"{i}.jpg" for i in np.flatnonzero(which == group)]
        assert sorted(engine.by_attribute(query, 0, 100, f"group = {group}").names) == sorted(left)


def test_an_index_without_columns(indexed):
    with pytest.raises(InputError, match=r"the columns: none \(index\.columns\)"):
        indexed("asen", **LANCE).search("003.jpg", "colour", where="price < 3")
    assert lance_table.own_columns(indexed("asen", **LANCE).engine.table) == []
