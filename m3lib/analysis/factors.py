"""Do scores order images of one class by finer traits that no label states?

Wardrobe keeps hidden factors of every image, such as the pitch of its stripes. Among the candidates of the
query's class, a score carries more than the class if it ranks those with a similar factor first.
"""

import numpy as np
import pandas as pd

from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.scores import similarity

FINER = {  # attribute of Wardrobe to the hidden factors that are finer than its classes
    "texture": ("hue", "ink", "pitch", "angle"),
    "pattern": ("ink", "pitch", "angle"),
    "color": ("hue", "saturation", "lightness"),
    "shape": ("hem",),
    "length": ("hem",),
    "part": ("depth", "sleeve_length"),
    "collar": ("depth",),
    "neckline design": ("depth",),
    "sleeve length": ("sleeve_length",),
    "coat length": ("hem",),
    "skirt length": ("lower_hem",),
    "pant length": ("lower_hem",),
}
MIN_CANDIDATES = 10  # relevant candidates; a rank correlation over fewer is mostly noise
CYCLIC = "hue"  # in [0, 1), where 0 and 1 are one colour


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(Q,) Spearman's correlation of each row of a with the same row of b, both (Q, C); 0 where a row is constant."""
    a, b = (pd.DataFrame(x).rank(axis=1).to_numpy() for x in (a, b))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def closeness(query: np.ndarray, candidate: np.ndarray, factor: str) -> np.ndarray:
    """(Q, C) negative distance between the values of a factor, (Q,) and (C,)."""
    distance = np.abs(query[:, None] - candidate[None])
    return -np.minimum(distance, 1 - distance) if factor == CYCLIC else -distance


def within_classes(prepared: Prepared, split: str, score: str, embeddings: Embeddings) -> dict[str, float]:
    """Return the mean rank correlation of similarity and closeness, in [-1, 1], by "attribute: factor".

    For each (query, class) pair, over the candidates of that class. Empty for a data set without hidden factors.
    """
    query_rows, candidate_rows = (prepared.rows(split, role) for role in ("query", "candidate"))
    means = {}
    for n, name in enumerate(prepared.taxonomy.names):
        factors = [factor for factor in FINER.get(name, ()) if f"factor_{factor}" in prepared.manifest]
        correlations: dict[str, list[np.ndarray]] = {factor: [] for factor in factors}
        of_attribute = embeddings.of_attribute(n, prepared.taxonomy)
        for carries in prepared.labels[:, prepared.taxonomy.classes_of(n)].T if factors else ():  # (I,) per class
            queries, candidates = query_rows[carries[query_rows]], candidate_rows[carries[candidate_rows]]
            if not len(queries) or len(candidates) < MIN_CANDIDATES:
                continue
            similar = similarity(score, of_attribute.take(queries), of_attribute.take(candidates)).numpy()
            others = queries[:, None] != candidates  # (Q, C): images may be both, and none is compared with itself
            similar = similar[others].reshape(len(queries), -1)
            for factor, rows in correlations.items():
                x = prepared.manifest[f"factor_{factor}"].to_numpy()
                near = closeness(x[queries], x[candidates], factor)[others].reshape(len(queries), -1)
                rows.append(rank_correlation(similar, near))
        means |= {f"{name}: {f}": float(np.concatenate(rows).mean()) for f, rows in correlations.items() if rows}
    return means
