"""The similarity scores: how a query image and a candidate image are compared under one attribute.

Every score is an inner product <u(q), v(c)> of a query vector and a candidate vector, so a ranking is one matrix
product and a search index holds one vector per image. No score reads the true class of the query.

Letters: Q queries, C candidates, I images, M_n classes of the attribute, D size of the attribute embedding f (unit
length), d size of the class-specific embeddings phi_m (unit length), p_m class probabilities. All embeddings here are
those of one attribute (`Embeddings.of_attribute`).
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from m3lib.retrieval.embeddings import Embeddings

SOFTNESS = 0.5  # weight of the class probabilities in the score soft_segment
VECTOR_BLOCK = 4096  # numbers of a vector per matrix product; fixed, so that sums are always added in the same order
CANDIDATE_BLOCK = 1 << 13  # candidates per matrix product; their block of float32 vectors takes up to 128 MB
MIN_ROWS = 16  # queries per matrix product: for fewer, some BLAS libraries add in another order


def attribute(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """cos(f(q), f(c))."""
    yield e.attribute[:, 0].float()


def segment(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """cos(f(q), f(c)), plus 2 if q and c have the same most probable class (MODC: space segmented by class)."""
    yield e.attribute[:, 0].float()
    yield most_probable_class(e) * (2.0 if is_query else 1.0)


def soft_segment(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """(1 - s) cos(f(q), f(c)) + s sum_m p_m(q) p_m(c), with s = SOFTNESS."""
    yield e.attribute[:, 0].float() * (1 - SOFTNESS if is_query else 1.0)
    yield e.posterior.float() * (SOFTNESS if is_query else 1.0)


def concat(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """Mean over m of cos(phi_m(q), phi_m(c))."""
    ones = torch.ones(e.classes.shape[:2])
    yield from scaled_classes(ones / ones.shape[1] if is_query else ones, e)


def top_class(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """cos(phi_m(q), phi_m(c)) for the most probable class m of q."""
    yield from scaled_classes(most_probable_class(e) if is_query else torch.ones(e.classes.shape[:2]), e)


def weighted(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """Sum over m of p_m(q) p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2."""
    p = e.posterior.float() * (0.5 if is_query else 1.0)
    yield p
    yield from scaled_classes(p, e)


def posterior(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """Sum over m of p_m(q) p_m(c): the probability that both show the same class, if they are independent."""
    yield e.posterior.float()


def evidence(e: Embeddings, is_query: bool) -> Iterator[Tensor]:
    """Sum over m of p_m(q) p_m(c) + OPEN r(q) r(c) cos(f(q), f(c)), r the probability left: 1 - max p_m."""
    p = e.posterior.float()
    yield p
    rest = 1 - p.amax(dim=1, keepdim=True)
    yield e.attribute[:, 0].float() * rest * (OPEN if is_query else 1.0)


OPEN = 0.5
VECTORS: dict[str, Callable[[Embeddings, bool], Iterator[Tensor]]] = {
    score.__name__: score for score in (attribute, segment, soft_segment, concat, top_class, weighted, posterior, evidence)
}


def most_probable_class(e: Embeddings) -> Tensor:
    """(I, M_n) float32: 1 for the most probable class of each image, else 0."""
    return F.one_hot(e.posterior.float().argmax(dim=1), e.posterior.shape[1]).float()


def scaled_classes(weight: Tensor, e: Embeddings) -> Iterator[Tensor]:
    """Yield (I, <= VECTOR_BLOCK) float32 blocks of the concatenation over m of weight_m phi_m; weight: (I, M_n)."""
    step = max(1, VECTOR_BLOCK // e.classes.shape[2])
    for w, phi in zip(weight.split(step, dim=1), e.classes.split(step, dim=1), strict=True):
        yield (w[..., None] * phi).flatten(1)


def query_vectors(score: str, e: Embeddings) -> Tensor:
    """(I, V) float32: u of each image, where the similarity is <u(q), v(c)>."""
    return torch.cat(list(VECTORS[score](e, True)), dim=1)


def candidate_vectors(score: str, e: Embeddings) -> Tensor:
    """(I, V) float32: v of each image; a search index stores these."""
    return torch.cat(list(VECTORS[score](e, False)), dim=1)


def similarity(score: str, query: Embeddings, candidate: Embeddings) -> Tensor:
    """(Q, C) float32 similarities of queries and candidates by the named score.

    The vectors are multiplied block by block, so that memory stays bounded. Queries are padded with zeros to MIN_ROWS:
    then the bits of a query's similarities do not depend on the other queries of the same call.
    """
    num_queries, num_candidates = len(query.rows), len(candidate.rows)
    result = torch.zeros(max(num_queries, MIN_ROWS), num_candidates)
    padding = (0, 0, 0, len(result) - num_queries)
    start, num_blocks = 0, max(1, -(-num_candidates // CANDIDATE_BLOCK))
    for columns in result.tensor_split(num_blocks, dim=1):  # views of all queries and a block of candidates
        block = candidate.at(slice(start, start := start + columns.shape[1]))
        for u, v in zip(VECTORS[score](query, True), VECTORS[score](block, False), strict=True):
            columns.addmm_(F.pad(u, padding), v.T)
    return result[:num_queries]
