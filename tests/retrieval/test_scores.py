"""The similarity scores against loops over pairs in float64."""

import numpy as np
import pytest
import torch

from embedded import D, M, N, make_embeddings
from m3lib.compatibility import SCORES
from m3lib.retrieval import scores
from m3lib.retrieval.embeddings import Embeddings
from reference import as_float64
from tiny import TAXONOMY, unit_rows


def naive_similarity(score: str, query: Embeddings, candidate: Embeddings, i: int, j: int, n: int) -> float:
    """Of query i and candidate j under attribute n, from similarity's docstring."""
    classes = [m for m in range(M) if TAXONOMY.attribute_of_class[m] == n]
    cosine = as_float64(query.attribute[i, n]) @ as_float64(candidate.attribute[j, n])
    cos = {m: as_float64(query.classes[i, m]) @ as_float64(candidate.classes[j, m]) for m in classes}
    p_q, p_c = ({m: float(e.posterior[row, m]) for m in classes} for e, row in ((query, i), (candidate, j)))
    return {
        "attribute": cosine,
        "segment": cosine + 2 * (max(classes, key=p_q.get) == max(classes, key=p_c.get)),
        "soft_segment": 0.5 * cosine + 0.5 * sum(p_q[m] * p_c[m] for m in classes),
        "concat": sum(cos.values()) / len(classes),
        "top_class": cos[max(classes, key=lambda m: p_q[m])],
        "weighted": sum(p_q[m] * p_c[m] * (1 + cos[m]) / 2 for m in classes),
        "posterior": sum(p_q[m] * p_c[m] for m in classes),
        "open": sum(p_q[m] * p_c[m] for m in classes) + 0.3 * cosine,
    }[score]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("attribute", range(N))
@pytest.mark.parametrize(("vector_block", "candidate_block"), [(4096, 8192), (2 * D, 4)])
def test_scores_against_a_loop_over_pairs(score, attribute, vector_block, candidate_block, monkeypatch):
    monkeypatch.setattr(scores, "VECTOR_BLOCK", vector_block)
    monkeypatch.setattr(scores, "CANDIDATE_BLOCK", candidate_block)
    query, candidate = make_embeddings(7), make_embeddings(9, seed=10)
    result = scores.similarity(score, *(e.of_attribute(attribute, TAXONOMY) for e in (query, candidate)))
    assert result.dtype == torch.float32
    expected = [
        [naive_similarity(score, query, candidate, i, j, attribute) for j in range(len(candidate.rows))]
        for i in range(len(query.rows))
    ]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_candidates_of_the_querys_segment_come_first_and_each_segment_is_ordered_by_cosine():
    query, candidate = (make_embeddings(40, seed=seed).of_attribute(1, TAXONOMY) for seed in (3, 6))
    order = scores.similarity("segment", query, candidate).argsort(dim=1, descending=True)
    cosine = query.attribute[:, 0].float() @ candidate.attribute[:, 0].float().T
    same = query.posterior.argmax(dim=1)[:, None] == candidate.posterior.argmax(dim=1)
    for i, ranked in enumerate(order):
        inside = int(same[i].sum())
        assert same[i, ranked].tolist() == [True] * inside + [False] * (40 - inside)
        for segment in (ranked[:inside], ranked[inside:]):
            assert (cosine[i, segment].diff() < 1e-6).all()
    assert (same.any(dim=1) & ~same.all(dim=1)).sum() > 30


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_of_a_query_do_not_depend_on_the_other_queries(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        query, candidate = (Embeddings(torch.arange(n), unit_rows(n, 1, 700, seed=n)) for n in (130, 90))
        together = scores.similarity("attribute", query, candidate)
        for rows in (slice(0, 1), slice(7, 9), slice(20, 41), slice(129, 130)):
            assert torch.equal(scores.similarity("attribute", query.at(rows), candidate), together[rows])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("score", SCORES)
def test_similarity_is_the_product_of_the_vectors(score):
    query, candidate = make_embeddings(7), make_embeddings(9, seed=10)
    for n in range(N):
        of_query, of_candidate = query.of_attribute(n, TAXONOMY), candidate.of_attribute(n, TAXONOMY)
        product = scores.query_vectors(score, of_query) @ scores.candidate_vectors(score, of_candidate).T
        torch.testing.assert_close(product, scores.similarity(score, of_query, of_candidate))
