"""Exact and compressed faiss indexes against sorts in float64."""

from functools import partial

import faiss
import numpy as np
import pytest

from m3lib.search import vector_index


def grouped_vectors(items, dims, rank, seed=0):
    """(I, V) float32 in groups, of different lengths, with most of their energy in `rank` directions."""
    rng = np.random.default_rng(seed)
    inner = rng.standard_normal((200, rank))[rng.integers(200, size=items)] + 0.3 * rng.standard_normal((items, rank))
    inner *= rng.uniform(0.5, 1.5, (items, 1))
    return (inner @ rng.standard_normal((rank, dims)) + 0.1 * rng.standard_normal((items, dims))).astype(np.float32)


@pytest.mark.parametrize("dims", [20, 300])
def test_recall_scores_and_bytes_of_the_compressed_index(dims):
    vectors = grouped_vectors(5000, dims, 12)
    ties = np.random.default_rng(0).permutation(5000)
    index, shortlist = vector_index.build(vectors.__getitem__, vectors.__getitem__, 5000, dims, "compressed", seed=0)
    ivf = faiss.extract_index_ivf(index)
    assert ivf.nprobe <= ivf.nlist / 2  # otherwise the cells would save nothing
    queries = grouped_vectors(5040, dims, 12)[5000:]
    results = [vector_index.rank(index, vectors.__getitem__, query, ties, 100, shortlist) for query in queries]
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    best = np.argsort(-exact, axis=1)[:, :100]
    assert faiss.eval_intersection(np.array([items for items, _ in results]), best) > 0.97 * best.size
    for (items, scores), truth in zip(results, exact, strict=True):
        np.testing.assert_allclose(scores, truth[items], rtol=1e-6)
        assert (np.diff(scores) <= 0).all()
    everything = vector_index.rank(index, vectors.__getitem__, queries[0], ties, 5000)[0]  # more than the probed cells
    assert np.array_equal(np.sort(everything), np.arange(5000))
    size = min(dims, vector_index.CODE)
    shared = 4 * ivf.nlist * size + 4 * dims * size  # cell centres and projection
    assert len(faiss.serialize_index(index)) - shared < 5000 * (size + 8 + 8)


def test_the_projection_holds_the_energy_of_the_largest_singular_values():
    vectors, size = grouped_vectors(2000, 300, 250), vector_index.CODE
    index, _ = vector_index.build(vectors.__getitem__, vectors.__getitem__, 2000, 300, "compressed", seed=0)
    projected = index.chain.at(0).apply(vectors)
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    assert np.square(projected).sum() == pytest.approx(np.square(values[:size]).sum(), rel=0.01)


@pytest.mark.parametrize(("kind", "extra", "exact"), [("auto", 0, True), ("auto", 1, False), ("exact", 1, True)])
def test_auto_compresses_above_a_size(monkeypatch, kind, extra, exact):
    monkeypatch.setattr(vector_index, "EXACT_FLOATS", 50 * 8)
    vectors = grouped_vectors(50 + extra, 8, 4)
    index, _ = vector_index.build(vectors.__getitem__, vectors.__getitem__, 50 + extra, 8, kind, seed=0)
    assert isinstance(index, faiss.IndexFlat) == exact


@pytest.mark.parametrize("items", [1, 2, 3, 7])
@pytest.mark.parametrize("dims", [3, 300])
def test_a_compressed_index_of_few_vectors_finds_all(items, dims):
    vectors = grouped_vectors(items, dims, 3)
    index, _ = vector_index.build(vectors.__getitem__, vectors.__getitem__, items, dims, "compressed", seed=0)
    found, scores = vector_index.rank(index, vectors.__getitem__, vectors[0], np.arange(items), items)
    exact = vectors.astype(np.float64) @ vectors[0].astype(np.float64)
    assert found.tolist() == np.argsort(-exact, kind="stable").tolist()
    np.testing.assert_allclose(scores, exact[found], rtol=1e-6)


@pytest.mark.parametrize(("dims", "more"), [(24, False), (400, True)])
def test_cells_and_shortlist_are_as_large_as_the_recall_of_the_true_best_needs(monkeypatch, dims, more):
    """Vectors without groups lie in many cells; those of 400 directions are compared by 192 of them at first."""
    monkeypatch.setattr(vector_index, "MIN_SHORTLIST", 100)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((4000, dims)).astype(np.float32)
    index, shortlist = vector_index.build(vectors.__getitem__, vectors.__getitem__, 4000, dims, "compressed", seed=0)
    assert (shortlist > 100) >= more
    queries = rng.standard_normal((50, dims)).astype(np.float32)
    best = np.argsort(-(queries.astype(np.float64) @ vectors.T.astype(np.float64)), axis=1)
    for k in (10, 100):  # for 100, too few items in the cells would make the search read all of them
        rank = partial(vector_index.rank, index, vectors.__getitem__, ties=np.arange(4000), k=k, shortlist=shortlist)
        found = np.array([rank(query=query)[0] for query in queries])
        assert faiss.eval_intersection(found, best[:, :k]) > 0.9 * found.size
