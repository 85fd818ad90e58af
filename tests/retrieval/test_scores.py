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
    own = [m for m in range(M) if TAXONOMY.attribute_of_class[m] == n]
    alike = as_float64(query.attribute[i, n]) @ as_float64(candidate.attribute[j, n])
    cos = {m: as_float64(query.classes[i, m]) @ as_float64(candidate.classes[j, m]) for m in own}
    p_q, p_c = ({m: float(e.posterior[row, m]) for m in own} for e, row in ((query, i), (candidate, j)))
    return {
        "attribute": alike,
        "segment": alike + 2 * (max(own, key=p_q.get) == max(own, key=p_c.get)),
        "soft_segment": 0.5 * alike + 0.5 * sum(p_q[m] * p_c[m] for m in own),
        "concat": sum(cos.values()) / len(own),
        "top_class": cos[max(own, key=lambda m: p_q[m])],
        "weighted": sum(p_q[m] * p_c[m] * (1 + cos[m]) / 2 for m in own),
        "posterior": sum(p_q[m] * p_c[m] for m in own),
    }[score]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("attribute", range(N))
@pytest.mark.parametrize(("vector_block", "candidate_block"), [(4096, 8192), (2 * D, 4)])
def test_scores_against_a_loop_over_pairs(score, attribute, vector_block, candidate_block, monkeypatch):
    monkeypatch.setattr(scores, "VECTOR_BLOCK", vector_block)
    monkeypatch.setattr(scores, "CANDIDATE_BLOCK", candidate_block)
    query, candidate = make_embeddings(7), make_embeddings(9, seed=10)
    got = scores.similarity(score, *(e.of_attribute(attribute, TAXONOMY) for e in (query, candidate)))
    assert got.dtype == torch.float32
    expected = [
        [naive_similarity(score, query, candidate, i, j, attribute) for j in range(len(candidate.rows))]
        for i in range(len(query.rows))
    ]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attribute", range(N))
def test_the_querys_segment_comes_first_and_inside_a_segment_the_cosine_counts(attribute):
    query, candidate = make_embeddings(20, seed=3), make_embeddings(40, seed=6)
    of_attribute = (e.of_attribute(attribute, TAXONOMY) for e in (query, candidate))
    order = scores.similarity("segment", *of_attribute).argsort(dim=1, descending=True)
    own, mixed = TAXONOMY.classes_of(attribute), 0
    for i, ranked in enumerate(order.tolist()):
        segment = int(query.posterior[i, own].argmax())
        inside = [int(candidate.posterior[j, own].argmax()) == segment for j in ranked]
        assert inside == sorted(inside, reverse=True)
        mixed += 0 < sum(inside) < len(inside)
        cosines = [
            float(query.attribute[i, attribute].float() @ candidate.attribute[j, attribute].float()) for j in ranked
        ]
        for part in (cosines[: sum(inside)], cosines[sum(inside) :]):
            assert part == pytest.approx(sorted(part, reverse=True), abs=1e-6)
    assert mixed > 15


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bits_of_a_query_do_not_depend_on_the_other_queries(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        query, candidate = (Embeddings(torch.arange(n), unit_rows(n, 1, 700, seed=n), None, None) for n in (130, 90))
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
