"""The retrieval protocol: which candidates are ranked for which queries, and which of them are relevant.

Letters: Q queries, C candidates, M_n classes of an attribute, P (query, class) pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from m3lib.data.manifest import Prepared
from m3lib.errors import InputError
from m3lib.retrieval import metrics, scores
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.metrics import QueryMetrics

BLOCK = 1 << 27  # similarities of one block of queries: 512 MB


@dataclass(frozen=True)
class Ranking:
    """The queries and candidates of one attribute and split, and the similarities that rank them."""

    query_rows: np.ndarray  # (Q,) manifest rows
    candidate_rows: np.ndarray  # (C,) manifest rows, in tie order (see `metrics.tie_keys`)
    similarity: Callable[[slice | np.ndarray], Tensor]  # (b, C) floats for b of the queries

    def order(self, queries: slice | np.ndarray) -> Tensor:
        """(b, C) int64: positions in candidate_rows, the most similar first, for some of the queries."""
        return self.similarity(queries).sort(dim=1, descending=True, stable=True).indices

    def labels(self, prepared: Prepared, classes: slice) -> tuple[np.ndarray, np.ndarray]:
        """(Q, M_n) and (C, M_n) bool: the labels of queries and candidates for a range of class ids."""
        labels = prepared.labels[:, classes]
        return labels[self.query_rows], labels[self.candidate_rows]


def rank(
    prepared: Prepared, split: str, attribute: int, score: str, embeddings: Embeddings | None, seed: int
) -> Ranking:
    """Rank the split's candidates for its queries; only images with a known label for the attribute take part.

    Where images are both, the similarity of a query with itself and its group (`Prepared.groups`) is -inf.

    The score "random" reads no embeddings: the similarities of each query are drawn from the seed.
    """
    known = prepared.labels[:, prepared.taxonomy.classes_of(attribute)].any(axis=1)
    rows = (prepared.rows(split, role) for role in ("query", "candidate"))
    query_rows, candidate_rows = (r[known[r]] for r in rows)
    # Sorted before the matrix product, whose last bit can depend on the column: it must not depend on the file order.
    names = prepared.manifest["image"].to_numpy()[candidate_rows].tolist()
    candidate_rows = candidate_rows[metrics.tie_keys(names).argsort().numpy()]
    if score == "random":

        def similarity(queries: slice | np.ndarray) -> Tensor:
            positions = np.arange(len(query_rows))[queries]
            streams = (np.random.Philox(key=seed * 1009 + attribute, counter=[0, 0, 0, row]) for row in positions)
            values = [np.random.Generator(stream).random(len(candidate_rows)) for stream in streams]
            return torch.from_numpy(np.reshape(values, (len(positions), len(candidate_rows))))

    else:
        of_attribute = embeddings.of_attribute(attribute, prepared.taxonomy)
        query, candidate = of_attribute.take(query_rows), of_attribute.take(candidate_rows)

        def similarity(queries: slice | np.ndarray) -> Tensor:
            return scores.similarity(score, query.at(queries), candidate)

    if not np.isin(query_rows, candidate_rows).any():
        return Ranking(query_rows, candidate_rows, similarity)
    asking, offered = prepared.groups[query_rows], torch.from_numpy(prepared.groups[candidate_rows])

    def among_others(queries: slice | np.ndarray) -> Tensor:
        return similarity(queries).masked_fill(torch.from_numpy(asking[queries])[:, None] == offered, -torch.inf)

    return Ranking(query_rows, candidate_rows, among_others)


def evaluate(
    prepared: Prepared,
    split: str,
    score: str,
    embeddings: Embeddings | None = None,
    seed: int = 0,
    relevance: str | None = None,
) -> dict[str, QueryMetrics]:
    """Return the metrics of every query of a split, by attribute name.

    relevance (default: the data set's):
        pair  a query is an (image, class it carries) pair; a candidate is relevant if it carries that class
        any   a query is an image; a candidate is relevant if it carries any of the image's classes

    Neither the number of threads nor the order of files changes a bit of the result.
    Raises InputError for embeddings that do not fit the data set or the score, or that hold NaN.
    """
    if score != "random":
        embeddings.check(score, prepared.taxonomy)
    by_pair = (relevance or prepared.relevance) == "pair"
    results = {}
    for n, name in enumerate(prepared.taxonomy.names):
        ranking = rank(prepared, split, n, score, embeddings, seed)
        query_labels, candidate_labels = ranking.labels(prepared, prepared.taxonomy.classes_of(n))
        step, blocks = max(scores.MIN_ROWS, BLOCK // max(1, len(candidate_labels))), []
        for start in range(0, max(1, len(query_labels)), step):
            similarity, labels = ranking.similarity(slice(start, start + step)), query_labels[start : start + step]
            if similarity.isnan().any():
                raise InputError(f"{name}, {split}, score {score}: some similarities are NaN; check the embeddings")
            if by_pair:
                block = metrics.evaluate_attribute(similarity, labels, candidate_labels)
                blocks.append(replace(block, query=start + block.query))
            else:  # each query is a class; a candidate carries those with which it shares a class
                shared = candidate_labels.astype(np.float32) @ labels.T.astype(np.float32) > 0  # (C, b)
                block = metrics.evaluate_attribute(similarity, np.eye(len(labels)), shared)
                blocks.append(replace(block, query=start + block.query, class_id=start + block.query))
        results[name] = metrics.concatenate(blocks)
    return results
