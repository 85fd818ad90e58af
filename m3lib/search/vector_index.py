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
CALIBRATION_QUERIES, CALIBRATION_RECALL, DEPTH = 64, 0.98, 100  # recall of the true best DEPTH, by the full vectors
BLOCK_FLOATS = 1 << 24  # of one block of vectors: 64 MB
MIN_SHORTLIST, MORE = 400, 4  # items of a compressed index that are scored again; how many times as many are tried next
SCORE_BLOCK = 1 << 13  # items that are scored at once

Kind = Literal["auto", "exact", "compressed"]
Vectors = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their vectors (B, V) float32
Score = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their scores (B,) float64
Ranked = tuple[np.ndarray, np.ndarray]  # numbers (k,) of the best items, best first, and their scores (k,) float64


def blocks(items: int, dims: int) -> list[np.ndarray]:
    """Return the item numbers 0 to I - 1 in blocks whose vectors take about BLOCK_FLOATS numbers."""
    return np.array_split(np.arange(items), 1 + items * dims // BLOCK_FLOATS)


def build(vectors: Vectors, queries: Vectors, items: int, dims: int, kind: Kind, seed: int) -> tuple[faiss.Index, int]:
    """Return the faiss index of items 0 to I - 1, and the length of its shortlist (0: it is exact).

    kind: `auto` compresses more than EXACT_FLOATS numbers. queries: the query vectors of the same items; a sample of
    them sets how many cells of a compressed index a search probes, and how many items it scores again (`calibrate`).
    Equal seeds and equal faiss threads give equal bytes.
    """
    if kind == "compressed" or (kind == "auto" and items * dims > EXACT_FLOATS):
        index = compress(vectors, items, dims, seed)
        sample = np.random.default_rng(seed).permutation(items)[:CALIBRATION_QUERIES]
        return index, calibrate(index, vectors, queries(np.sort(sample)))
    index = faiss.IndexFlatIP(dims)
    for block in blocks(items, dims):
        index.add(vectors(block))
    return index, 0


def compress(vectors: Vectors, items: int, dims: int, seed: int) -> faiss.Index:
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
    return faiss.clone_index(faiss.IndexPreTransform(projection, index))  # a clone owns its quantizer


def true_best(vectors: Vectors, queries: np.ndarray, items: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest inner products with each query (Q, k), best first, and whose they are, computed block by block."""
    heap = faiss.ResultHeap(len(queries), k, keep_max=True)
    for block in blocks(items, queries.shape[1]):
        products, best = faiss.knn(queries, vectors(block), min(k, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        heap.add_result(products, best + block[0])
    heap.finalize()
    return heap.D, heap.I


def calibrate(index: faiss.IndexPreTransform, vectors: Vectors, queries: np.ndarray) -> int:
    """Set how many cells a search probes, and return how many items it scores again: as few as recall allows.

    Recall is that of the true best DEPTH by the full vectors, at least CALIBRATION_RECALL over the queries (Q, V). An
    item counts as found if it scores as high as the last of them. The shortlist is set with all cells probed.
    """
    ivf, items = faiss.extract_index_ivf(index), index.ntotal
    depth = min(DEPTH, items)
    kth = true_best(vectors, queries, items, depth)[0][:, -1]  # (Q,)

    def recall(cells: int, shortlist: int) -> float:
        ivf.nprobe = cells
        listed = index.search(queries, shortlist)[1]
        found = [
            min(depth, np.count_nonzero(vectors(own[own >= 0]) @ query >= last - 1e-6 * abs(last)))
            for own, query, last in zip(listed, queries, kth, strict=True)
        ]
        return sum(found) / (depth * len(found))

    shortlist, cells = min(MIN_SHORTLIST, items), 1
    while shortlist < items and recall(ivf.nlist, shortlist) < CALIBRATION_RECALL:
        shortlist = min(MORE * shortlist, items)
    while cells < ivf.nlist and recall(cells, shortlist) < CALIBRATION_RECALL:
        cells *= 2
    ivf.nprobe = cells
    return shortlist


def rank(
    index: faiss.Index, vectors: Vectors, query: np.ndarray, ties: np.ndarray, k: int, shortlist: int = 0
) -> Ranked:
    """Return the k items nearest to a query (V,), scored by their full vectors.

    Exact if the index is: all items that tie with the k-th are scored again. A compressed index gives a shortlist of
    items to score, at least MORE k, but some of the true k may be missing. Equal vectors get equal scores to the bit,
    and fall by their tie keys.
    """
    row = np.ascontiguousarray(query[None], dtype=np.float32)
    if isinstance(index, faiss.IndexFlat):
        kth = index.search(row, k)[0][0, -1]
        items = index.range_search(row, float(np.nextafter(kth, np.float32(-np.inf))))[2]
    else:
        depth = min(max(MORE * k, shortlist), index.ntotal)
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
