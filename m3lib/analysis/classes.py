"""Metrics and embeddings class by class: which classes are hard, and where they lie in embedding space."""

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.metrics import QueryMetrics, expected_random_ap

NEIGHBOURS = 15  # that vote
MIN_POINTS = 6 * NEIGHBOURS  # half of them may vote; if most of these did, the embeddings would not matter


def class_means(prepared: Prepared, results: dict[str, QueryMetrics]) -> dict[str, float]:
    """Return the mean AP@all of each class with queries, as a fraction, by its name "attribute: class"."""
    means = {}
    for n, of_attribute in enumerate(results.values()):
        start = int(prepared.taxonomy.offsets[n])
        for m, ap in pd.Series(of_attribute.ap_all).groupby(of_attribute.class_id).mean().items():
            means[prepared.taxonomy.full_name(start + m)] = float(ap)
    return means


def class_table(prepared: Prepared, split: str, results: dict[str, QueryMetrics]) -> pd.DataFrame:
    """Return one row per class with queries: attribute, class_, training images, AP@all and its random floor in %."""
    taxonomy, blocks = prepared.taxonomy, []
    candidates = prepared.labels[prepared.rows(split, "candidate")]
    asks_all = bool(np.isin(prepared.rows(split, "query"), prepared.rows(split, "candidate")).any())
    for n, of_attribute in enumerate(results.values()):
        classes = taxonomy.classes_of(n)
        offered = int(candidates[:, classes].any(axis=1).sum()) - asks_all  # a query is no candidate for itself
        floor = 100 * expected_random_ap(of_attribute.relevant, offered)
        class_id, ap = of_attribute.class_id + classes.start, 100 * of_attribute.ap_all
        blocks.append(pd.DataFrame({"class_id": class_id, "ap": ap, "floor": floor}))
    table = pd.concat(blocks).groupby("class_id", as_index=False).mean()
    table["attribute"] = np.array(taxonomy.names)[taxonomy.attribute_of_class[table["class_id"]]]
    table["class_"] = [taxonomy.class_name(m) for m in table["class_id"]]
    table["images"] = prepared.labels[prepared.rows("train")].sum(axis=0)[table["class_id"]]
    return table[["attribute", "class_", "images", "ap", "floor"]]


def class_points(
    prepared: Prepared, embeddings: Embeddings, attribute: int, limit: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `limit` test (image, class) pairs of an attribute: vectors (A, d) float32 and class names (A,).

    The vector is the class-specific embedding of that class if the network outputs one, else the attribute embedding,
    else the class probabilities of the attribute.
    """
    classes, rows = prepared.taxonomy.classes_of(attribute), prepared.rows("test")
    image, class_id = np.nonzero(prepared.labels[rows, classes])
    sample = np.sort(generator.permutation(len(image))[:limit])
    image, class_id = image[sample], class_id[sample]
    of_images = embeddings.of_attribute(attribute, prepared.taxonomy).take(rows[image])
    if of_images.classes is not None:
        vectors = of_images.classes[torch.arange(len(image)), torch.from_numpy(class_id)]
    elif of_images.attribute is not None:
        vectors = of_images.attribute[:, 0]
    else:
        vectors = of_images.posterior
    return vectors.float().numpy(), np.array([prepared.taxonomy.class_name(classes.start + m) for m in class_id])


def vote(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return the share of a random half of the points whose class a vote of NEIGHBOURS of the other half predicts.

    vectors: (A, d), compared by cosine; labels: (A,). The share is NaN for fewer than MIN_POINTS points.
    """
    if len(labels) < MIN_POINTS:
        return np.nan
    voters, others, of_voters, of_others = train_test_split(vectors, labels, test_size=0.5, random_state=seed)
    return KNeighborsClassifier(NEIGHBOURS, metric="cosine").fit(voters, of_voters).score(others, of_others)
