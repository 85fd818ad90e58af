"""How an index is made: compressed kinds, equal bytes, files that belong together, the export, bench and costs."""

import json
import shutil
from dataclasses import replace

import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from catalogues import build_index, noise_pictures, random_embeddings, random_gallery
from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval.ranking import KINDS
from m3lib.search import build, index_files, vector_index
from m3lib.search.index import Index
from m3lib.training import inference
from tests.bench import scaling as search_costs
from tests.bench import search as bench_search
from tiny import TAXONOMY, generator

PREPARED = noise_pictures()
ITEMS = len(PREPARED.images)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return build_index(tmp_path_factory.mktemp("made"), PREPARED)


def long_vectors(items, dims, rank, seed=0):
    """(I, V) float32 in groups, of different lengths, most of their energy in `rank` directions."""
    rng = np.random.default_rng(seed)
    inner = rng.standard_normal((200, rank))[rng.integers(200, size=items)] + 0.3 * rng.standard_normal((items, rank))
    inner *= rng.uniform(0.5, 1.5, (items, 1))
    return (inner @ rng.standard_normal((rank, dims)) + 0.1 * rng.standard_normal((items, dims))).astype(np.float32)


@pytest.mark.parametrize("dims", [20, 300])
def test_the_compressed_kind_finds_what_a_full_look_finds(dims):
    vectors = long_vectors(5000, dims, 12)
    ties = np.random.default_rng(0).permutation(5000)
    made = vector_index.build(vectors.__getitem__, vectors.__getitem__, 5000, dims, "compressed", seed=0)
    inner = faiss.extract_index_ivf(made)
    assert inner.nprobe <= inner.nlist / 2  # else the cells would save nothing
    asked = long_vectors(5040, dims, 12)[5000:]
    found = [vector_index.rank(made, vectors.__getitem__, q, ties, 100) for q in asked]
    exact = asked.astype(np.float64) @ vectors.T.astype(np.float64)
    assert vector_index.recall([items for items, _ in found], np.argsort(-exact, axis=1)[:, :100]) > 0.97
    for (items, scores), truth in zip(found, exact, strict=True):
        np.testing.assert_allclose(scores, truth[items], rtol=1e-6)
        assert (np.diff(scores) <= 0).all()
    whole = vector_index.rank(made, vectors.__getitem__, asked[0], ties, 5000)[0]  # more than the usual cells hold
    assert np.array_equal(np.sort(whole), np.arange(5000))
    kept = min(dims, vector_index.CODE)
    centres = 4 * inner.nlist * kept + 4 * dims * kept
    assert vector_index.size(made) - centres < 5000 * (kept + 8 + 8)
    assert kept + 8 <= 256 - 4 * vector_index.CODE * 2 * 1000 / 1e6  # per item at a million


def test_kept_directions_hold_the_energy_that_svd_says():
    sample = long_vectors(400, 60, 10)
    basis = vector_index.directions(sample, 15, np.random.default_rng(0))
    np.testing.assert_allclose(basis.T @ basis, np.eye(15), atol=1e-5)
    values = np.linalg.svd(sample.astype(np.float64), compute_uv=False)
    assert np.square(sample @ basis).sum() == pytest.approx(np.square(values[:15]).sum(), rel=1e-3)


@pytest.mark.parametrize(("kind", "items", "made"), [
    ("auto", vector_index.EXACT_FLOATS // 64, "exact"),
    ("auto", vector_index.EXACT_FLOATS // 64 + 1, "compressed"),
    ("exact", 10**9, "exact"),
    ("compressed", 1, "compressed"),
])  # fmt: skip
def test_kinds_by_size(kind, items, made):
    assert vector_index.choose(kind, items, 64) == made


@pytest.mark.parametrize("kind", ["exact", "compressed"])
def test_equal_settings_give_equal_bytes(tmp_path, kind):
    folders = [build_index(tmp_path / name, PREPARED, kind=kind).folder for name in ("a", "b")]
    names = sorted(path.name for path in folders[0].iterdir())
    assert names == sorted([
        "0.faiss", "1.faiss", "2.faiss", "attribute.npy", "classes.npy", "index.json", "items.parquet",
        "model.safetensors", "posterior.npy", "taxonomy.json",
    ])  # fmt: skip
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    exact = [vector_index.is_exact(faiss.read_index(str(folders[0] / f"{n}.faiss"))) for n in range(3)]
    assert exact == [kind == "exact"] * 3


def test_embeddings_are_the_networks(index):
    whole = inference.embed(index.system, PREPARED, np.arange(ITEMS), "fp32")
    for n in range(3):
        got, expected = index.gallery.of(np.array([9, 2, 33]), n), whole.take(np.array([9, 2, 33])).of(n, TAXONOMY)
        for part in KINDS:
            torch.testing.assert_close(getattr(got, part), getattr(expected, part), atol=2e-3, rtol=0)


@pytest.mark.parametrize("count", ["all", "test"])
def test_the_gallery_is_all_or_the_test_pictures(tmp_path, count):
    made = build_index(tmp_path, PREPARED, "classifier", gallery=count)
    rows = range(ITEMS) if count == "all" else PREPARED.rows("test").tolist()
    assert made.gallery.rows.tolist() == list(rows)
    assert made.images == PREPARED.manifest["image"].iloc[list(rows)].tolist()
    assert {match.row for match in made.search(made.images[0], "colour", k=len(made))} == set(rows)


def test_an_index_takes_the_place_of_another_when_it_is_whole(tmp_path, monkeypatch):
    old = build_index(tmp_path, PREPARED, "classifier").folder
    before = (old / "index.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(index_files, "seal", None)
        with pytest.raises(TypeError):
            build_index(tmp_path, noise_pictures(seed=1), "classifier")
    assert (old / "index.json").read_bytes() == before
    Index.open(old)
    assert len(build_index(tmp_path, noise_pictures(30), "classifier")) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.safetensors", "index"]


def test_an_empty_gallery_is_told(tmp_path):
    none = Prepared(TAXONOMY, PREPARED.manifest.assign(split="train"), PREPARED.images)
    with pytest.raises(InputError, match=r"no picture to index: the gallery is empty \(params\.yaml, index\.gallery\)"):
        build_index(tmp_path, none, "classifier", gallery="test")
    with pytest.raises(InputError, match="the gallery is empty"):
        vector_index.build(None, None, 0, 4, "auto", seed=0)


@pytest.mark.parametrize("part", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_embeddings_without_numbers_are_told(tmp_path, part, value):
    spoiled = random_embeddings(30)
    getattr(spoiled, part)[17, 2] = value
    with pytest.raises(InputError, match=rf"embedding \({part}\) of '17\.jpg' holds NaN or infinite values"):
        random_gallery(tmp_path / "gallery", spoiled)


def swap(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-1] + b"\x07")


def say(folder, **changes):
    told = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(told | changes))


SPOILED = [
    (lambda folder: shutil.rmtree(folder), r"no search index in .*: run `dvc repro index`"),
    (lambda folder: (folder / "index.json").unlink(), r"no search index in .*: run `dvc repro index`"),
    (lambda folder: (folder / "index.json").write_text("{"), r"index\.json is damaged .*; run `dvc repro index`"),
    (lambda folder: (folder / "index.json").write_text('{"format": 1}'), r"index\.json is damaged"),
    (lambda folder: (folder / "index.json").write_text("[]"), r"index\.json is damaged"),
    (lambda folder: say(folder, format=2), r"is of format 2, and this version of m3lib reads format 1"),
    (lambda folder: say(folder, variant={}), r"index\.json is damaged"),
    (lambda folder: say(folder, pictures={"height": 3}), r"there is no such setting|is missing|must lie"),
    (lambda folder: swap(folder, "model.safetensors"), r"model\.safetensors is not the file that this index was made"),
    (lambda folder: swap(folder, "1.faiss"), r"1\.faiss is not the file"),
    (lambda folder: swap(folder, "posterior.npy"), r"posterior\.npy is not the file"),
    (lambda folder: swap(folder, "items.parquet"), r"items\.parquet is not the file"),
    (lambda folder: (folder / "classes.npy").unlink(), r"lacks classes\.npy; copy the whole folder"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "sentence"), SPOILED)
def test_files_of_another_run_or_version_are_told(index, tmp_path, spoil, sentence):
    shutil.copytree(index.folder, tmp_path / "index")
    spoil(tmp_path / "index")
    with pytest.raises(InputError, match=sentence):
        Index.open(tmp_path / "index")


def test_a_large_file_is_told_by_its_places(tmp_path, monkeypatch):
    monkeypatch.setattr(index_files, "WHOLE", 1 << 20)
    content = np.random.default_rng(0).integers(0, 256, 3 << 20, dtype=np.uint8)
    found = []
    for change in (None, 0, len(content) - 1):
        other = content.copy()
        if change is not None:
            other[change] ^= 1
        (tmp_path / "a").write_bytes(other.tobytes())
        found.append(index_files.fingerprint(tmp_path / "a"))
    assert len(set(found)) == 3


def test_a_model_of_another_network_is_told(tmp_path):
    build_index(tmp_path, PREPARED, "asen")
    (tmp_path / "asen.safetensors").rename(tmp_path / "m3.safetensors")
    with pytest.raises(InputError, match=r"m3\.safetensors doesn't hold the weights of m3 .*; run `dvc repro train`"):
        build.load_system(build_index(tmp_path / "m3", PREPARED).variant, TAXONOMY, tmp_path / "m3.safetensors")


def test_the_export_holds_what_a_search_says(index, tmp_path, capsys):
    assert build.main(["export", str(tmp_path / "out"), str(index.folder)]) == 0
    assert "40 pictures, 3 attributes" in capsys.readouterr().out
    about = json.loads((tmp_path / "out" / "vectors.json").read_text())
    assert [part["attribute"] for part in about["attributes"]] == TAXONOMY.names
    for part in about["attributes"]:
        table = pq.read_table(tmp_path / "out" / part["vectors"])
        assert table.schema.field("vector").type.list_size == part["dims"]
        vectors = np.stack(table["vector"].to_pylist())
        query = index.query_vector(PREPARED.images[6], part["attribute"])
        found = index.search(PREPARED.images[6], part["attribute"], k=ITEMS)
        scores = dict(zip(table["name"].to_pylist(), vectors @ query, strict=True))
        assert {match.path: match.score for match in found} == pytest.approx(scores, abs=1e-6)
        assert table["row"].to_pylist() == index.gallery.rows.tolist()
        ids = faiss.read_index(str(tmp_path / "out" / part["faiss"])).search(query[None], 5)[1][0]
        assert [table["name"][int(i)].as_py() for i in ids] == [match.path for match in found[:5]]


def test_the_export_tells_mistakes(index, tmp_path, capsys):
    (tmp_path / "a").write_text("")
    assert build.main(["export", str(tmp_path), str(index.folder)]) == 1
    assert "is not empty" in capsys.readouterr().err
    assert build.main(["export", str(tmp_path / "b"), str(tmp_path / "c")]) == 1
    assert "no search index" in capsys.readouterr().err
    assert build.main(["export"]) == 2


def test_comparing_kinds(index):
    found = build.compare(index, "details", np.array([3, 8, 20]), seed=0)
    assert (found["items"], found["dims"], found["recall@100"]) == (ITEMS, 4 * (1 + 6), 1.0)
    assert found["exact"] == pytest.approx(4 * found["dims"], abs=3)


def test_jittered_pictures_lie_among_the_real_ones():
    real = random_embeddings(300, d=12).of(1, TAXONOMY)
    made = bench_search.jittered(real, 4000, seed=3)
    for part in ("attribute", "classes"):
        got, wanted = (getattr(e, part).float().flatten(0, 1) for e in (made, real))
        torch.testing.assert_close(got.norm(dim=1), torch.ones(len(got)), atol=2e-3, rtol=0)
        torch.testing.assert_close(got.T.cov(), wanted.T.cov(), atol=0.03, rtol=0)
    assert 0 <= made.posterior.min() <= made.posterior.max() <= 1
    assert made.posterior.float().mean() == pytest.approx(float(real.posterior.float().mean()), abs=0.05)


def test_the_bench_at_small_size(tmp_path, monkeypatch, capsys):
    real = random_embeddings(200, d=12).of(1, TAXONOMY)
    monkeypatch.setattr(bench_search, "CASES", (bench_search.Case("m3", "weighted"),))
    monkeypatch.setattr(bench_search, "read", lambda root, case: (replace(real, attribute=None), alone()))
    table = bench_search.run(tmp_path, [300, 3000])
    assert table["kind"].tolist() == ["compressed", "exact", "two classes"] * 2
    assert (table["recall_100"] >= 0.95).all()
    exact = table[table["kind"] == "exact"]
    assert (exact["recall_100"] >= 0.999).all()  # float32 products may swap the 100th with the next
    assert exact["memory_bytes"].to_numpy() == pytest.approx(4 * 4 * 13, abs=1)
    assert "looked_into" in capsys.readouterr().out
    assert "| 1 billion | m3 weighted |" in search_costs.page(table, 0.5)


def alone():
    return type(TAXONOMY)((TAXONOMY.attributes[1],))


def test_true_best_against_a_sort():
    vectors, asked = (
        torch.randn(500, 7, generator=generator()).numpy(),
        torch.randn(9, 7, generator=generator(1)).numpy(),
    )
    found = bench_search.true_best(vectors.__getitem__, asked, 500, 20)
    assert np.array_equal(found, np.argsort(-(asked @ vectors.T), axis=1)[:, :20])


def test_costs_in_proportion_and_machines_by_the_scarcer_of_memory_and_disk():
    row = pd.Series({"items": 1_000_000, "dims": 100, "memory_bytes": 200.0, "shared_bytes": 24.0, "disk_bytes": 400.0})
    row = pd.concat([row, pd.Series({"build_seconds": 36.0, "p50_ms": 2.0})])
    small, large = (search_costs.cost(row, items) for items in (10**7, 10**9))
    assert small["memory"] == 10**7 * (5 * 200 + 24)
    assert small["machines"] == 1
    assert small["core_hours"] == pytest.approx(36 * 10 * 5 / 3600)
    assert small["ms"] == pytest.approx(2.0 * 10 / 16)
    assert large["machines"] == 20  # 1,024 GB of memory in shares of 51.2 GB
    assert search_costs.cost(row.replace({400.0: 8000.0}), 10**9)["machines"] == 25  # 40 TB of disk in shares of 1.6 TB
    assert large["graph"] == 5 * 10**9 * (400 + 128)
