"""Nearest neighbours by inner product: the exact and the compressed faiss index, and the exact ranking by classes.

Arrays in, arrays out; no files. Letters: I items, V the size of their vectors, B items at a time, K classes.

An index of up to EXACT_FLOATS numbers (I x V) keeps every vector: faiss's flat index. A larger one is compressed:
vectors are projected to their CODE principal directions, stored with one byte per direction in about 2 sqrt(I) cells,
and a query is compared with the items of the cells whose centres have the largest inner product with it. The result is
a shortlist, which has to be scored again with the full vectors.

Two choices differ from faiss's defaults. The projection does not subtract the mean, because that would change the inner
products. Cells come from Euclidean k-means, although they are probed by inner product: spherical k-means ignores the
lengths of vectors, and twice as many cells had to be probed for the same recall.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import faiss
import numpy as np

EXACT_FLOATS = 1 << 26  # 256 MB
CODE = 192  # bytes of a compressed vector; the index adds 8 for the item's number
PER_CELL = 64  # sampled items per cell in k-means
SAMPLE_FLOATS = 1 << 26  # of the sample that the principal directions are computed from
CALIBRATION_QUERIES, CALIBRATION_RECALL = 64, 0.99  # recall@100 against probing every cell
BLOCK_FLOATS = 1 << 24  # of one block of vectors: 64 MB
MIN_SHORTLIST = 400  # items of a compressed index that are scored again
SCORE_BLOCK = 1 << 13  # items that are scored at once
MAX_AGREEMENT = 1.01  # (1 + cos) / 2 of unit vectors, which half precision may make slightly longer than 1

Kind = Literal["auto", "exact", "compressed"]
Vectors = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their vectors (B, V) float32
Score = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their scores (B,) float64


def blocks(items: int, dims: int) -> Iterator[np.ndarray]:
    """Yield the item numbers 0 to I - 1 in blocks whose vectors take BLOCK_FLOATS numbers."""
    size = max(1, BLOCK_FLOATS // dims)
    for start in range(0, items, size):
        yield np.arange(start, min(start + size, items))


def build(vectors: Vectors, queries: Vectors, items: int, dims: int, kind: Kind, seed: int) -> faiss.Index:
    """Return the faiss index of items 0 to I - 1; equal seeds and equal faiss threads give equal bytes.

    kind: `auto` compresses more than EXACT_FLOATS numbers. queries: the query vectors of the same items; a compressed
    index uses a sample of them to set how many cells a search probes.
    """
    if kind == "compressed" or (kind == "auto" and items * dims > EXACT_FLOATS):
        return compress(vectors, queries, items, dims, seed)
    index = faiss.IndexFlatIP(dims)
    for block in blocks(items, dims):
        index.add(vectors(block))
    return index


def compress(vectors: Vectors, queries: Vectors, items: int, dims: int, seed: int) -> faiss.Index:
    rng = np.random.default_rng(seed)
    cells = max(1, min(2 ** round(np.log2(2 * items**0.5)), items))
    size = min(dims, CODE)
    shuffled = rng.permutation(items)
    projection = faiss.LinearTransform(dims, size, False)
    sample = vectors(np.sort(shuffled[: max(2 * size, SAMPLE_FLOATS // dims)]))
    faiss.copy_array_to_vector(principal_directions(sample, size, rng).T.ravel(), projection.A)
    projection.is_trained = True
    sample = np.sort(shuffled[: PER_CELL * cells])
    centres = faiss.IndexFlatL2(size)
    inner_product = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centres, size, cells, faiss.ScalarQuantizer.QT_8bit, inner_product, False)
    index.cp.spherical, index.cp.niter, index.cp.seed = False, 10, seed
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, PER_CELL
    index.train(np.concatenate([projection.apply(vectors(sample[block])) for block in blocks(len(sample), dims)]))
    for block in blocks(items, dims):  # into the nearest cell by Euclidean distance
        index.add(projection.apply(vectors(block)))
    index.quantizer = by_inner_product = faiss.IndexFlatIP(size)
    by_inner_product.add(centres.reconstruct_n(0, cells))
    index.nprobe = calibrate_nprobe(index, projection.apply(queries(np.sort(shuffled[:CALIBRATION_QUERIES]))))
    return faiss.clone_index(faiss.IndexPreTransform(projection, index))  # a clone owns its quantizer


def principal_directions(sample: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(V, size) float32 orthonormal: the directions of most energy in a sample (B, V), by subspace iteration."""
    if size == sample.shape[1]:
        return np.eye(size, dtype=np.float32)
    basis = rng.standard_normal((sample.shape[1], size), dtype=np.float32)
    for _ in range(4):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    return np.ascontiguousarray(basis, dtype=np.float32)


def calibrate_nprobe(index: faiss.IndexIVF, queries: np.ndarray) -> int:
    """Return the smallest power of two of probed cells whose recall is CALIBRATION_RECALL, or the number of cells."""
    depth, nprobe = min(100, index.ntotal), 1
    truth = index.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=index.nlist))[1]
    while nprobe < index.nlist:
        result = index.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=nprobe))[1]
        if recall(result, truth) >= CALIBRATION_RECALL:
            break
        nprobe *= 2
    return min(nprobe, index.nlist)


def recall(results: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """Return the mean fraction of each query's true items among its results."""
    return float(np.mean([np.isin(right, result).mean() for result, right in zip(results, truth, strict=True)]))


def is_exact(index: faiss.Index) -> bool:
    return isinstance(index, faiss.IndexFlat)


def shortlist(index: faiss.Index, query: np.ndarray, k: int) -> np.ndarray:
    """Return item numbers that include the k with the largest inner product with a query (V,), in no fixed order.

    Exact: these k, and all that tie with the k-th. Compressed: at least 4 k, but some of the true k may be missing.
    """
    query = np.ascontiguousarray(query[None], dtype=np.float32)
    if is_exact(index):
        kth = index.search(query, k)[0][0, -1]
        return index.range_search(query, float(np.nextafter(kth, np.float32(-np.inf))))[2]
    ivf = faiss.extract_index_ivf(index)
    depth, nprobe = min(max(4 * k, MIN_SHORTLIST), index.ntotal), ivf.nprobe
    while True:
        probing = faiss.SearchParametersIVF(nprobe=min(nprobe, ivf.nlist))
        items = index.search(query, depth, params=faiss.SearchParametersPreTransform(index_params=probing))[1][0]
        if nprobe >= ivf.nlist or (items[:k] >= 0).all():  # -1 where the probed cells hold too few items
            return items[items >= 0]
        nprobe *= 2


def rank(
    index: faiss.Index, vectors: Vectors, query: np.ndarray, ties: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items nearest to a query (V,): numbers and float64 scores (k,) by their full vectors, best first.

    Exact if the index is. Equal vectors get equal scores to the bit, and fall by their tie keys.
    """

    def score(items: np.ndarray) -> np.ndarray:
        return np.multiply(vectors(items), query, dtype=np.float64).sum(axis=1)

    return top_k(shortlist(index, query, k), score, ties, k)


def rank_by_classes(
    posterior: np.ndarray, phi: Vectors | None, query_phi: np.ndarray | None, ties: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k items with the largest mean of `class_agreement` over K classes: numbers and float64 scores (k,).

    posterior: (K, I) p_m. phi: item numbers (B,) to phi_m (B, K, d), if there are any. The mean of p_m bounds the score
    from above, so only two groups of items are scored: those with the largest bounds, then all whose bound reaches the
    k-th score of the first group.
    """

    def score(items: np.ndarray) -> np.ndarray:
        return class_agreement(posterior[:, items].T, None if phi is None else phi(items), query_phi).mean(axis=1)

    bound = MAX_AGREEMENT * np.mean(posterior, axis=0, dtype=np.float64)  # (I,)
    first = min(max(1024, 4 * k), len(bound))
    likely = np.argpartition(-bound, first - 1)[:first]
    return top_k(np.flatnonzero(bound >= np.partition(score(likely), -k)[-k]), score, ties, k)


def class_agreement(posterior: np.ndarray, phi: np.ndarray | None, query_phi: np.ndarray | None) -> np.ndarray:
    """(B, K) float64: p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2 of candidates c and a query q; p_m(c) without phi.

    posterior: (B, K). phi: (B, K, d) unit rows. query_phi: (1, K, d).
    """
    p = np.asarray(posterior, np.float64)
    if phi is None:
        return p
    return p * (1 + np.multiply(phi, query_phi, dtype=np.float64).sum(axis=2)) / 2


def top_k(items: np.ndarray, score: Score, ties: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score items in blocks and return the k best and their scores; equal scores fall by the tie keys (I,) int64."""
    scores = np.concatenate([score(block) for block in np.split(items, range(SCORE_BLOCK, len(items), SCORE_BLOCK))])
    order = np.lexsort((ties[items], -scores))[:k]
    return items[order], scores[order]
