"""Nearest neighbours by inner product: the exact and the compressed faiss index.

Arrays in, arrays out; no files. Letters: I items, V the size of their vectors, B items at a time.

An index of up to EXACT_FLOATS numbers (I x V) keeps every vector: faiss's flat index. A larger one is compressed:
vectors are projected to their CODE principal directions, stored with one byte per direction in about 2 sqrt(I) cells,
and a query is compared with the items of the cells whose centres have the largest inner product with it. The result is
a shortlist, which has to be scored again with the full vectors.

Two choices differ from faiss's defaults. The projection does not subtract the mean, because that would change the inner
products. Cells come from Euclidean k-means, although they are probed by inner product: spherical k-means ignores the
lengths of vectors, and twice as many cells had to be probed for the same recall.
"""

from collections.abc import Callable
from typing import Literal

import faiss
import numpy as np
import torch

EXACT_FLOATS = 1 << 26  # 256 MB
CODE = 192  # bytes of a compressed vector; the index adds 8 for the item's number
PER_CELL = 64  # sampled items per cell in k-means
SAMPLE_FLOATS = 1 << 26  # of the sample that the principal directions are computed from
CALIBRATION_QUERIES, CALIBRATION_RECALL = 64, 0.99  # recall@100 against probing every cell
BLOCK_FLOATS = 1 << 24  # of one block of vectors: 64 MB
MIN_SHORTLIST = 400  # items of a compressed index that are scored again
SCORE_BLOCK = 1 << 13  # items that are scored at once

Kind = Literal["auto", "exact", "compressed"]
Vectors = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their vectors (B, V) float32
Score = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their scores (B,) float64
Ranked = tuple[np.ndarray, np.ndarray]  # numbers (k,) of the best items, best first, and their scores (k,) float64


def blocks(items: int, dims: int) -> list[np.ndarray]:
    """Return the item numbers 0 to I - 1 in blocks whose vectors take about BLOCK_FLOATS numbers."""
    return np.array_split(np.arange(items), 1 + items * dims // BLOCK_FLOATS)


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
    shuffled = np.random.default_rng(seed).permutation(items)
    size = min(dims, items, CODE)
    sample = vectors(np.sort(shuffled[: max(2 * size, SAMPLE_FLOATS // dims)]))
    torch.manual_seed(seed)
    directions = torch.svd_lowrank(torch.from_numpy(sample), size, niter=4)[2]  # (V, size)
    projection = faiss.LinearTransform(dims, size, False)
    faiss.copy_array_to_vector(directions.T.numpy().ravel(), projection.A)
    projection.is_trained = True
    cells = min(2 ** round(np.log2(2 * items**0.5)), items)
    centres = faiss.IndexFlatL2(size)
    inner_product = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centres, size, cells, faiss.ScalarQuantizer.QT_8bit, inner_product, False)
    index.cp.spherical, index.cp.niter, index.cp.seed = False, 10, seed
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, PER_CELL
    sample = np.sort(shuffled[: PER_CELL * cells])
    index.train(np.concatenate([projection.apply(vectors(sample[block])) for block in blocks(len(sample), dims)]))
    for block in blocks(items, dims):  # into the nearest cell by Euclidean distance
        index.add(projection.apply(vectors(block)))
    index.quantizer = by_inner_product = faiss.IndexFlatIP(size)
    by_inner_product.add(centres.reconstruct_n(0, cells))
    calibrate(index, projection.apply(queries(np.sort(shuffled[:CALIBRATION_QUERIES]))))
    return faiss.clone_index(faiss.IndexPreTransform(projection, index))  # a clone owns its quantizer


def calibrate(index: faiss.IndexIVF, queries: np.ndarray) -> None:
    """Set the number of probed cells to the smallest power of two whose recall is CALIBRATION_RECALL."""
    depth = min(100, index.ntotal)
    truth = index.search(queries, depth, params=faiss.SearchParametersIVF(nprobe=index.nlist))[1]
    index.nprobe = 1
    while faiss.eval_intersection(index.search(queries, depth)[1], truth) < CALIBRATION_RECALL * truth.size:
        index.nprobe *= 2


def rank(index: faiss.Index, vectors: Vectors, query: np.ndarray, ties: np.ndarray, k: int) -> Ranked:
    """Return the k items nearest to a query (V,), scored by their full vectors.

    Exact if the index is: all items that tie with the k-th are scored again. A compressed index gives at least 4 k
    items to score, but some of the true k may be missing. Equal vectors get equal scores to the bit, and fall by their
    tie keys.
    """
    row = np.ascontiguousarray(query[None], dtype=np.float32)
    if isinstance(index, faiss.IndexFlat):
        kth = index.search(row, k)[0][0, -1]
        items = index.range_search(row, float(np.nextafter(kth, np.float32(-np.inf))))[2]
    else:
        depth = min(max(4 * k, MIN_SHORTLIST), index.ntotal)
        items = index.search(row, depth)[1][0]
        if (items[:k] < 0).any():  # -1: the probed cells hold too few items
            all_cells = faiss.SearchParametersIVF(nprobe=faiss.extract_index_ivf(index).nlist)
            items = index.search(row, depth, params=faiss.SearchParametersPreTransform(index_params=all_cells))[1][0]
    return top_k(items[items >= 0], lambda i: np.multiply(vectors(i), query, dtype=np.float64).sum(axis=1), ties, k)


def top_k(items: np.ndarray, score: Score, ties: np.ndarray, k: int) -> Ranked:
    """Score items in blocks and return the k best and their scores; equal scores fall by the tie keys (I,) int64."""
    scores = np.concatenate([score(block) for block in np.split(items, range(SCORE_BLOCK, len(items), SCORE_BLOCK))])
    order = np.lexsort((ties[items], -scores))[:k]
    return items[order], scores[order]
