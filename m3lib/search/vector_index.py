"""Nearest neighbours by inner product: faiss indexes, exact and compressed, and the ranking by chosen classes.

Arrays in, arrays out; no files. Letters: I items, V the size of their vectors, B of them at a time.

Items are few or many by I x V. Up to EXACT_FLOATS an index keeps every vector (`exact`, faiss's flat index). Beyond,
`compressed` keeps the directions that carry most of a sample's energy, CODE of them at most, a byte each, in about
2 sqrt(I) cells, and looks at the few cells whose centres have the largest inner product with the query. What it returns
has to be scored again with the vectors themselves. Cells come from Euclidean k-means although they are probed by inner
product: faiss's own choice of spherical cells ignores lengths, and vectors of class probabilities differ in length.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import faiss
import numpy as np

from m3lib.errors import InputError

EXACT_FLOATS = 1 << 26  # 256 MB
CODE = 192  # bytes of a compressed vector; the index adds 8 for the item's number
PER_CELL = 64  # sampled items a cell that k-means sees
BASIS_FLOATS = 1 << 26  # of the sample that the kept directions come from
CHECKED, WANTED = 64, 0.99  # sampled queries, and their recall@100 against a look into every cell
BLOCK = 1 << 24  # floats of one block of vectors: 64 MB
DEPTH = 400  # items that a compressed index returns at least, to be scored again
SCORED = 1 << 13  # items that are scored at once

Kind = Literal["auto", "exact", "compressed"]
Vectors = Callable[[np.ndarray], np.ndarray]  # item numbers (B,) to their vectors (B, V) float32


def choose(kind: Kind, items: int, dims: int) -> Kind:
    """exact or compressed; `auto` decides by items x dimensions."""
    if kind != "auto":
        return kind
    return "exact" if items * dims <= EXACT_FLOATS else "compressed"


def blocks(items: int, dims: int) -> Iterator[np.ndarray]:
    """The item numbers 0 to I - 1 in runs whose vectors fit a block."""
    size = max(1, BLOCK // dims)
    for start in range(0, items, size):
        yield np.arange(start, min(start + size, items))


def build(vectors: Vectors, queries: Vectors, items: int, dims: int, kind: Kind, seed: int) -> faiss.Index:
    """The faiss index of items 0 to I - 1; equal seeds and equal faiss threads give equal bytes.

    queries gives the same items as queries, by which a compressed index sets how many cells it looks into.
    """
    if items < 1:
        raise InputError("there is no picture to index: the gallery is empty")
    if choose(kind, items, dims) == "exact":
        index = faiss.IndexFlatIP(dims)
        for chosen in blocks(items, dims):
            index.add(vectors(chosen))
        return index
    return compress(vectors, queries, items, dims, seed)


def compress(vectors: Vectors, queries: Vectors, items: int, dims: int, seed: int) -> faiss.Index:
    rng = np.random.default_rng(seed)
    cells = max(1, min(2 ** round(np.log2(2 * items**0.5)), items))
    shuffled = rng.permutation(items)
    sample = np.sort(shuffled[: PER_CELL * cells])
    kept = min(dims, CODE)
    turn = faiss.LinearTransform(dims, kept, False)
    seen = vectors(np.sort(shuffled[: max(2 * kept, BASIS_FLOATS // dims)]))
    faiss.copy_array_to_vector(directions(seen, kept, rng).T.ravel(), turn.A)
    turn.is_trained = True
    size = max(1, BLOCK // dims)
    turned = np.concatenate([turn.apply(vectors(part)) for part in np.split(sample, range(size, len(sample), size))])
    means = faiss.Kmeans(kept, cells, niter=10, seed=seed, min_points_per_centroid=1, max_points_per_centroid=PER_CELL)
    means.train(turned)
    nearest, centres = faiss.IndexFlatL2(kept), faiss.IndexFlatIP(kept)
    nearest.add(means.centroids)
    centres.add(means.centroids)
    inner = faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(centres, kept, cells, faiss.ScalarQuantizer.QT_8bit, inner, False)
    index.train(turned)
    for chosen in blocks(items, dims):
        part = turn.apply(vectors(chosen))
        add_to_cells(index, part, chosen, nearest.search(part, 1)[1][:, 0])
    asked = turn.apply(queries(np.sort(shuffled[:CHECKED])))
    index.nprobe = enough_cells(index, asked)
    return faiss.IndexPreTransform(turn, index)


def directions(sample: np.ndarray, kept: int, rng: np.random.Generator) -> np.ndarray:
    """(V, kept) float32 orthonormal: where most of the sample's (B, V) energy lies, by subspace iteration.

    The mean is not taken out: an inner product with what is left would not be the inner product any more.
    """
    if kept == sample.shape[1]:
        return np.eye(kept, dtype=np.float32)
    basis = rng.standard_normal((sample.shape[1], kept), dtype=np.float32)
    for _ in range(4):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    return np.ascontiguousarray(basis, dtype=np.float32)


def add_to_cells(index: faiss.IndexIVF, part: np.ndarray, numbers: np.ndarray, cells: np.ndarray) -> None:
    """Add vectors (B, kept) to the cells that are given, under the items' numbers."""
    part, numbers, cells = (np.ascontiguousarray(array) for array in (part, numbers, cells))
    index.add_core(len(part), faiss.swig_ptr(part), faiss.swig_ptr(numbers), faiss.swig_ptr(cells), None)


def enough_cells(index: faiss.IndexIVF, asked: np.ndarray) -> int:
    """The smallest power of two of cells that finds as good as all that a look into every cell finds."""
    depth = min(100, index.ntotal)
    truth = index.search(asked, depth, params=faiss.SearchParametersIVF(nprobe=index.nlist))[1]
    probes = 1
    while probes < index.nlist:
        found = index.search(asked, depth, params=faiss.SearchParametersIVF(nprobe=probes))[1]
        if recall(found, truth) >= WANTED:
            break
        probes *= 2
    return min(probes, index.nlist)


def recall(found: Sequence[np.ndarray], truth: Sequence[np.ndarray]) -> float:
    """The mean share of each query's true items that were found."""
    pairs = zip(found, truth, strict=True)
    return float(np.mean([np.isin(wanted, got).mean() for got, wanted in pairs]))


def size(index: faiss.Index) -> int:
    """Bytes that an index takes, in memory as in its file."""
    return len(faiss.serialize_index(index))


def is_exact(index: faiss.Index) -> bool:
    return isinstance(index, faiss.IndexFlat)


def find(index: faiss.Index, query: np.ndarray, k: int) -> np.ndarray:
    """Item numbers among which are the k with the largest inner product with a query (V,), in no stated order.

    Exact: those k, and all that share the k-th one's value. Compressed: 4 k at least, some of the true ones missing.
    """
    query = np.ascontiguousarray(query[None], dtype=np.float32)
    if is_exact(index):
        least = index.search(query, k)[0][0, -1]
        return index.range_search(query, float(np.nextafter(least, np.float32(-np.inf))))[2]
    ivf = faiss.extract_index_ivf(index)
    depth, probes = min(max(4 * k, DEPTH), index.ntotal), ivf.nprobe
    while True:
        inner = faiss.SearchParametersIVF(nprobe=min(probes, ivf.nlist))
        found = index.search(query, depth, params=faiss.SearchParametersPreTransform(index_params=inner))[1][0]
        if probes >= ivf.nlist or (found[:k] >= 0).all():
            return found[found >= 0]
        probes *= 2


def best(items: np.ndarray, scores: np.ndarray, ties: np.ndarray, k: int) -> np.ndarray:
    """(k,) places in `items` by falling score, equal ones by their tie keys; ties: (I,) int64 of all items."""
    return np.lexsort((ties[items], -scores))[:k]


def rank(
    index: faiss.Index, vectors: Vectors, query: np.ndarray, ties: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The k items nearest to a query (V,), scored by their own vectors: numbers and float64 scores (k,), best first.

    Exact where the index is. Items of equal vectors have equal scores to the bit, so ties fall as `best` says.
    """
    items = find(index, query, k)
    parts = np.split(items, range(SCORED, len(items), SCORED))
    scores = np.concatenate([np.multiply(vectors(part), query, dtype=np.float64).sum(axis=1) for part in parts])
    order = best(items, scores, ties, k)
    return items[order], scores[order]


def rank_by_classes(
    posterior: np.ndarray, ties: np.ndarray, k: int, agreement: Callable[[np.ndarray], np.ndarray], reach: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k items of the largest mean over C chosen classes of p_m (1 + cos_m) / 2: numbers and float64 scores (k,).

    posterior: (C, I), a row a class. agreement: item numbers (B,) to (B, C) float64, the terms of the mean. reach: (C,)
    the largest that (1 + cos_m) / 2 can be. The mean of p_m reach_m bounds an item's score from above: the items of the
    largest bounds are scored first, then all whose bound is not below the k-th score found, so the result is exact.
    """
    bound = np.zeros(posterior.shape[1])
    for row, most in zip(posterior, reach, strict=True):
        bound += row * np.float64(most)
    bound *= (1 + 1e-12) / len(posterior)  # what rounding may take from a sum of this length
    first = min(max(1024, 4 * k), len(bound))
    items = np.argpartition(-bound, first - 1)[:first]
    least = np.partition(agreement(items).mean(axis=1), -k)[-k]
    items = np.flatnonzero(bound >= least)
    parts = np.split(items, range(SCORED, len(items), SCORED))
    scores = np.concatenate([agreement(part).mean(axis=1) for part in parts])
    order = best(items, scores, ties, k)
    return items[order], scores[order]
