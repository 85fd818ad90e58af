"""Are class-specific embeddings specific to their class?

A network that repeats one vector for every class of an attribute can reach the same MAP as one whose class spaces
differ: the class probabilities do the work. Two numbers tell them apart. The cosine of an image's embeddings for two
classes of an attribute is 1 where the spaces are one. The own-space advantage asks whether the queries of a class are
ranked better in the class's own space than in those of its siblings, the other classes of the attribute; random
projections differ too, but have no advantage.
"""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, ranking, scores
from m3lib.retrieval.embeddings import Embeddings

MAX_QUERIES, MAX_SPACES = 500, 12  # of an attribute, sampled; bounds the time on large benchmarks


def mean_cosine(vectors: Tensor) -> float:
    """The mean cosine of two different rows of each set of unit rows (..., K, d); NaN if K is 1.

    The squared length of the sum of K unit rows is K plus the cosines of all ordered pairs.
    """
    K = vectors.shape[-2]
    squared = vectors.float().sum(dim=-2).square().sum(dim=-1)
    return float(((squared - K) / (K * (K - 1))).mean()) if K > 1 else np.nan


def space_table(prepared: Prepared, split: str, embeddings: Embeddings, seed: int = 0) -> pd.DataFrame:
    """Return one row per attribute, in percent but for the cosine; only images in `embeddings` take part.

    cosine: the mean cosine of one image's embeddings for two classes of the attribute
    own: AP@all of the queries of a class (pairs of an image and a class that it carries) in the class's own space
    siblings: the same queries in the spaces of the attribute's other classes, averaged
    advantage: own - siblings
    attribute: the same queries by the attribute embedding; NaN for a network without one
    """
    generator, taxonomy = np.random.default_rng(seed), prepared.taxonomy
    return pd.DataFrame(
        {
            name: attribute_row(prepared, split, embeddings, n, generator)
            for n, name in enumerate(taxonomy.names)
            if len(taxonomy.attributes[n].classes) > 1
        },
        index=["cosine", "own", "siblings", "advantage", "attribute"],
    ).T


def attribute_row(
    prepared: Prepared, split: str, embeddings: Embeddings, attribute: int, generator: np.random.Generator
) -> dict[str, float]:
    ranked = ranking.rank(prepared, split, attribute, "random", None, 0)
    queries, candidates = (
        rows[np.isin(rows, embeddings.rows.numpy())] for rows in (ranked.query_rows, ranked.candidate_rows)
    )
    queries = np.sort(generator.permutation(queries)[:MAX_QUERIES])
    of_attribute, classes = (
        embeddings.of_attribute(attribute, prepared.taxonomy),
        prepared.taxonomy.classes_of(attribute),
    )
    query, candidate = of_attribute.take(queries), of_attribute.take(candidates)
    labels, relevant = prepared.labels[queries, classes], prepared.labels[candidates, classes]
    spaces = np.sort(generator.permutation(labels.shape[1])[:MAX_SPACES])
    labels, relevant = labels[:, spaces], relevant[:, spaces]

    def precisions(space: Embeddings, other: Embeddings) -> np.ndarray:  # (P,) AP@all by the cosine of one space
        similarity = scores.similarity("attribute", space, other)
        similarity[torch.from_numpy(prepared.groups[queries][:, None] == prepared.groups[candidates])] = -torch.inf
        return metrics.evaluate_attribute(similarity, labels, relevant).ap_all

    by_space = np.array([precisions(in_space(query, m), in_space(candidate, m)) for m in spaces.tolist()])  # (S, P)
    own = labels.nonzero()[1] == np.arange(len(spaces))[:, None]  # (S, P)
    values = {"cosine": mean_cosine(candidate.classes)}
    if labels.any():
        values |= {"own": 100 * by_space[own].mean(), "siblings": 100 * by_space[~own].mean()}
        values["advantage"] = values["own"] - values["siblings"]
        if query.attribute is not None:
            values["attribute"] = 100 * precisions(query, candidate).mean()
    return values


def in_space(e: Embeddings, m: int) -> Embeddings:
    """The embeddings of one class, in the place of an attribute embedding."""
    return Embeddings(e.rows, e.classes[:, m : m + 1])


def image_cosine(embeddings: Embeddings) -> dict[str, float]:
    """The mean cosine of the embeddings of two images, by kind; near 1 where a network tells no image from another."""
    kinds = {"attribute": embeddings.attribute, "classes": embeddings.classes}
    return {kind: mean_cosine(vectors.transpose(0, 1)) for kind, vectors in kinds.items() if vectors is not None}
