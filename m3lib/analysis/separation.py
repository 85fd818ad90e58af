"""Are classes separable in an embedding space? No label selects a vector, so training alone can separate them.

Letters: A images, M_n classes of an attribute, d size of a class-specific embedding, V size of a vector.
"""

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from sklearn.neighbors import NearestNeighbors

from m3lib.data.manifest import Prepared
from m3lib.retrieval import metrics, scores
from m3lib.retrieval.embeddings import Embeddings

COMMON = ("attribute", "weighted", "concat", "posterior")  # the first of these scores that is available
NEIGHBOURS = 15  # that vote
MIN_POINTS = 6 * NEIGHBOURS  # half of them may vote; if most of these did, the embeddings would not matter


def labelled_rows(prepared: Prepared, rows: np.ndarray, attribute: int) -> np.ndarray:
    """(A,) those of the manifest rows with a known label, in the order of ties: the first ones are a random sample."""
    known = rows[prepared.labels[rows, prepared.taxonomy.classes_of(attribute)].any(axis=1)]
    names = prepared.manifest["image"].to_numpy()[known].tolist()
    return known[metrics.tie_keys(names).argsort().numpy()]


def common_space(prepared: Prepared, embeddings: Embeddings, attribute: int, rows: np.ndarray) -> np.ndarray:
    """(A, V) float32: what a score compares of each image, in one space for all classes of an attribute.

    The attribute embedding if the network outputs one; else the class-specific embeddings side by side, weighted by the
    class probabilities if there are any; else the class probabilities.
    """
    score = next(score for score in COMMON if score in embeddings.scores)
    of_images = embeddings.of_attribute(attribute, prepared.taxonomy).take(rows)
    return scores.candidate_vectors(score, of_images).numpy()


def class_space(embeddings: Embeddings, class_id: int, rows: np.ndarray) -> np.ndarray:
    """(A, d) float32: the class-specific embedding phi_m of each image, for one class m, whatever its labels."""
    return Embeddings(embeddings.rows, classes=embeddings.classes[:, class_id]).take(rows).classes.float().numpy()


def most_frequent_class(prepared: Prepared, attribute: int) -> int:
    """Return the id of the attribute's class with the most training images."""
    classes = prepared.taxonomy.classes_of(attribute)
    return classes.start + int(prepared.labels[prepared.rows("train"), classes].sum(axis=0).argmax())


def space_ap(prepared: Prepared, vectors: np.ndarray, class_id: int, rows: np.ndarray) -> float:
    """Return the mean AP@all of the images that carry a class, which rank all others by the cosine, in [0, 1].

    vectors: (A, d) unit rows; rows: (A,) manifest rows in the order of ties. NaN if fewer than two carry the class.
    """
    carries = prepared.labels[rows, class_id, None]  # (A, 1)
    asking, groups = carries[:, 0], prepared.groups[rows]
    if asking.sum() < 2:
        return np.nan
    similarity = torch.from_numpy(vectors[asking] @ vectors.T)  # (Q, A)
    similarity[torch.from_numpy(groups[asking, None] == groups)] = -torch.inf  # not among the candidates
    return float(metrics.evaluate_attribute(similarity, carries[asking], carries).ap_all.mean())


def vote(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Return the share of a random half of the images that carry the class for which their neighbours vote.

    Each of the NEIGHBOURS nearest images of the other half votes for its classes; of equal votes, the first class wins.
    vectors: (A, V), compared by cosine; labels: (A, M_n) bool. The share is NaN for fewer than MIN_POINTS images.
    """
    if len(labels) < MIN_POINTS:
        return np.nan
    voters, others, of_voters, of_others = train_test_split(vectors, labels, test_size=0.5, random_state=seed)
    nearest = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine").fit(voters).kneighbors(others)[1]
    elected = of_voters[nearest].sum(axis=1).argmax(axis=1)  # (A / 2,)
    return float(of_others[np.arange(len(elected)), elected].mean())


def display_classes(names: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(A,) the class by which each image is coloured: of its classes, the most frequent one of these images.

    names: (M_n,) class names; labels: (A, M_n) bool.
    """
    return names[np.where(labels, labels.sum(axis=0), -1).argmax(axis=1)]
