"""Likeness inside a class: do nearer results share finer traits that no label tells?

The drawn benchmark keeps hidden factors of every picture, such as the pitch of its stripes. Among the candidates that
carry the query's class, a score is worth more than the class alone if it puts those first whose factor is close.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.scores import similarity

FINER = {  # attribute of the drawn benchmark to the hidden factors that are finer than its classes
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
FEWEST = 10  # relevant candidates, below which a rank correlation says nothing
CYCLIC = "hue"  # in [0, 1), where 0 and 1 are one colour


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(Q,) Spearman's correlation of each row of a with the same row of b, both (Q, C); 0 where a row is constant."""
    a, b = (pd.DataFrame(x).rank(axis=1).to_numpy() for x in (a, b))
    a, b = (x - x.mean(axis=1, keepdims=True) for x in (a, b))
    scale = np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))
    return np.divide((a * b).sum(axis=1), scale, out=np.zeros(len(a)), where=scale > 0)


def closeness(query: np.ndarray, candidate: np.ndarray, factor: str) -> np.ndarray:
    """(Q, C) minus the distance between a factor's values (Q,) and (C,)."""
    distance = np.abs(query[:, None] - candidate[None])
    return -np.minimum(distance, 1 - distance) if factor == CYCLIC else -distance


def inside_classes(prepared: Prepared, split: str, score: str, embeddings: Embeddings) -> dict[str, float]:
    """ "attribute: factor" to the mean rank correlation over (query, class) pairs, in [-1, 1]; empty without factors.

    Of similarity with closeness in the factor, over the candidates that carry the class.
    """
    taxonomy, found = prepared.taxonomy, {}
    for n, name in enumerate(taxonomy.names):
        of_attribute = embeddings.of_attribute(n, taxonomy)
        values = {f: prepared.manifest[f"factor_{f}"].to_numpy() for f in FINER.get(name, ()) if known(prepared, f)}
        parts: dict[str, list[np.ndarray]] = {factor: [] for factor in values}
        for asking, answering in class_pairs(prepared, split, taxonomy.classes_of(n)) if values else ():
            query, candidate = of_attribute.take(asking), of_attribute.take(answering)
            alike = similarity(score, query, candidate)
            for factor, x in values.items():
                close = closeness(x[asking], x[answering], factor)
                parts[factor].append(rank_correlation(alike.numpy(), close))
        found |= {f"{name}: {factor}": float(np.concatenate(part).mean()) for factor, part in parts.items() if part}
    return found


def known(prepared: Prepared, factor: str) -> bool:
    return f"factor_{factor}" in prepared.manifest


def class_pairs(prepared: Prepared, split: str, classes: slice) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Manifest rows of the queries and of the candidates that carry a class, for every class with enough of them."""
    rows = prepared.rows(split, "query"), prepared.rows(split, "candidate")
    for m in range(classes.start, classes.stop):
        asking, answering = (part[prepared.labels[part, m]] for part in rows)
        if len(asking) and len(answering) >= FEWEST:
            yield asking, answering
