"""Likeness inside a class: do nearer results share finer traits that no label tells?

The drawn benchmark keeps hidden factors of every picture, such as the pitch of its stripes. Among the candidates that
carry the query's class, a score is worth more than the class alone if it puts those first whose factor is close.
"""

import numpy as np
import pandas as pd

from m3lib import retrieval
from m3lib.manifest import Prepared
from m3lib.retrieval import Embeddings

FEWEST = 10  # relevant candidates, below which a rank correlation says nothing
CYCLIC = "factor_hue"  # in [0, 1), where 0 and 1 are one colour


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(Q,) Spearman's correlation of each row of a with the same row of b, both (Q, C); 0 where a row is constant."""
    a, b = (pd.DataFrame(x).rank(axis=1).to_numpy() for x in (a, b))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def closeness(query: np.ndarray, candidate: np.ndarray, cyclic: bool) -> np.ndarray:
    """(Q, C) minus the distance between factors (Q,) and (C,)."""
    distance = np.abs(query[:, None] - candidate[None])
    return -np.minimum(distance, 1 - distance) if cyclic else -distance


def inside_classes(prepared: Prepared, split: str, score: str, embeddings: Embeddings) -> dict[str, dict[str, float]]:
    """Attribute to hidden factor to the mean over (query, class) pairs of the rank correlation, in [-1, 1].

    Of similarity with closeness in the factor, over the candidates that carry the class. Empty without factors.
    """
    factors = [column for column in prepared.manifest if column.startswith("factor_")]
    values, taxonomy, found = prepared.manifest[factors].to_numpy(), prepared.taxonomy, {}
    for n, name in enumerate(taxonomy.names if factors else []):
        own = taxonomy.classes_of(n)
        sums, pairs = np.zeros(len(factors)), 0
        for m in range(own.start, own.stop):
            rows = prepared.rows(split, "query"), prepared.rows(split, "candidate")
            asking, answering = (part[prepared.labels[part, m]] for part in rows)
            if not len(asking) or len(answering) < FEWEST:
                continue
            alike = retrieval.similarity(score, embeddings.take(asking), embeddings.take(answering), n, taxonomy)
            pairs += len(asking)
            for k, factor in enumerate(factors):
                close = closeness(values[asking, k], values[answering, k], factor == CYCLIC)
                sums[k] += rank_correlation(alike.numpy(), close).sum()
        means = (sums / max(pairs, 1)).tolist()
        found[name] = {factor.removeprefix("factor_"): mean for factor, mean in zip(factors, means, strict=True)}
    return found
