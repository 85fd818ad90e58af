"""Exact and compressed faiss indexes, and the ranking by classes, against sorts in float64."""

import math
from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch

from catalogues import catalogue_of, random_embeddings
from m3lib.retrieval import metrics
from m3lib.search import vector_index
from tiny import TAXONOMY


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
    index = vector_index.build(vectors.__getitem__, vectors.__getitem__, 5000, dims, "compressed", seed=0)
    ivf = faiss.extract_index_ivf(index)
    assert ivf.nprobe <= ivf.nlist / 2  # otherwise the cells would save nothing
    queries = grouped_vectors(5040, dims, 12)[5000:]
    results = [vector_index.rank(index, vectors.__getitem__, query, ties, 100) for query in queries]
    exact = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    assert vector_index.recall([items for items, _ in results], np.argsort(-exact, axis=1)[:, :100]) > 0.97
    for (items, scores), truth in zip(results, exact, strict=True):
        np.testing.assert_allclose(scores, truth[items], rtol=1e-6)
        assert (np.diff(scores) <= 0).all()
    everything = vector_index.rank(index, vectors.__getitem__, queries[0], ties, 5000)[0]  # more than the probed cells
    assert np.array_equal(np.sort(everything), np.arange(5000))
    size = min(dims, vector_index.CODE)
    shared = 4 * ivf.nlist * size + 4 * dims * size  # cell centres and projection
    assert len(faiss.serialize_index(index)) - shared < 5000 * (size + 8 + 8)
    assert size + 8 <= 256 - 4 * vector_index.CODE * 2 * 1000 / 1e6  # per item at a million items


def test_principal_directions_hold_the_energy_of_the_largest_singular_values():
    sample = grouped_vectors(400, 60, 10)
    basis = vector_index.principal_directions(sample, 15, np.random.default_rng(0))
    np.testing.assert_allclose(basis.T @ basis, np.eye(15), atol=1e-5)
    values = np.linalg.svd(sample.astype(np.float64), compute_uv=False)
    assert np.square(sample @ basis).sum() == pytest.approx(np.square(values[:15]).sum(), rel=1e-3)


@pytest.mark.parametrize(("kind", "extra", "exact"), [("auto", 0, True), ("auto", 1, False), ("exact", 1, True)])
def test_auto_compresses_above_a_size(monkeypatch, kind, extra, exact):
    monkeypatch.setattr(vector_index, "EXACT_FLOATS", 50 * 8)
    vectors = grouped_vectors(50 + extra, 8, 4)
    index = vector_index.build(vectors.__getitem__, vectors.__getitem__, 50 + extra, 8, kind, seed=0)
    assert vector_index.is_exact(index) == exact


def naive_by_classes(embeddings, query, classes, names, k):
    """(item, score) of the best, in float64, from the equation in the docstring of `index`."""
    p, phi, scores = embeddings.posterior.double().numpy(), embeddings.classes, []
    for j in range(len(p)):
        terms = []
        for m in classes:
            q = None if phi is None else query.classes[0, m].double().numpy()
            cos = 1.0 if phi is None else math.fsum(q * phi[j, m].double().numpy())
            terms.append(p[j, m] * (1 + cos) / 2)
        scores.append(math.fsum(terms) / len(terms))
    ties = metrics.tie_keys(names).tolist()
    return [(j, scores[j]) for j in sorted(range(len(p)), key=lambda j: (-scores[j], ties[j]))[:k]]


@pytest.mark.parametrize("with_phi", [True, False])
@pytest.mark.parametrize("classes", [[1], [0, 3], [2, 1, 0]])
def test_ranking_by_classes_against_a_loop_with_ties(with_phi, classes):
    """Each image occurs three times under different names, and many probabilities are equal."""
    rows = np.random.default_rng(0).permutation(np.arange(2100) % 700)
    embeddings = replace(random_embeddings(700).at(rows), rows=torch.arange(2100))
    embeddings = replace(embeddings, posterior=(embeddings.posterior * 8).round() / 8)
    embeddings = embeddings if with_phi else replace(embeddings, classes=None)
    catalogue, start = catalogue_of(embeddings), TAXONOMY.classes_of(1).start
    query = embeddings.take(np.array([5]))
    for k in (1, 10, 50, 2100):
        items, scores = catalogue.rank_by_classes(query.of_attribute(1, TAXONOMY), 1, classes, k)
        expected = naive_by_classes(embeddings, query, [start + m for m in classes], catalogue.names.to_pylist(), k)
        assert items.tolist() == [j for j, _ in expected]
        np.testing.assert_allclose(scores, [score for _, score in expected], rtol=1e-12)


def test_ranking_by_classes_scores_few_images(monkeypatch):
    embeddings, agreement, scored = random_embeddings(6000), vector_index.class_agreement, []
    monkeypatch.setattr(vector_index, "class_agreement", lambda p, *phi: scored.append(len(p)) or agreement(p, *phi))
    query = embeddings.take(np.array([5])).of_attribute(1, TAXONOMY)
    catalogue_of(embeddings).rank_by_classes(query, 1, [0], 5)
    assert sum(scored) < 3000
