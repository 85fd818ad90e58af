"""The images of an index and their embeddings: vectors for the faiss indexes, and the exact ranking by classes.

Letters: I images in the order of their manifest rows, N attributes, M classes, K classes to search by, B images at a
time.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch import Tensor

from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.retrieval.embeddings import KINDS, Embeddings
from m3lib.search.vector_index import Ranked, Vectors, top_k
from m3lib.taxonomy import Taxonomy

MAX_AGREEMENT = 1.01  # (1 + cos) / 2 of unit vectors, which half precision may make slightly longer than 1


class Found(NamedTuple):
    """The images that a search found, best first."""

    names: list[str]
    rows: list[int | None]  # in the prepared manifest; None for an image that was added later
    scores: np.ndarray  # (k,) float64
    embeddings: Embeddings  # of the attribute searched by, (k, 1, D), (k, M_n), (k, M_n, d)


@dataclass(frozen=True)
class Catalogue:
    """The images of an index and their embeddings."""

    taxonomy: Taxonomy
    names: pa.Array  # (I,) text
    ties: np.ndarray  # (I,) int64
    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.names)

    @property
    def rows(self) -> np.ndarray:
        """(I,) int64, rising: the images' rows in the prepared manifest."""
        return self.embeddings.rows.numpy()

    def position(self, name: str) -> int:
        """Return the number of the image with this name, or -1."""
        with suppress(UnicodeEncodeError):  # of a name that no file can have
            return pc.index(self.names, pa.scalar(name, self.names.type)).as_py()
        return -1

    def position_of_row(self, row: int) -> int:
        """Return the number of the image of a manifest row; raises InputError if the index doesn't hold it."""
        number = int(np.searchsorted(self.rows, row))
        if number == len(self) or self.rows[number] != row:
            raise InputError(f"the index holds no image of row {row} of the manifest: name another one")
        return number

    def for_attribute(self, items: np.ndarray, attribute: int) -> Embeddings:
        """Return the embeddings of images (B,) for one attribute and its classes, so N is 1."""
        return self.embeddings.of_attribute(attribute, self.taxonomy).at(items)

    def vectors(self, to_vectors: Callable[[str, Embeddings], Tensor], score: str, attribute: int) -> Vectors:
        """Return a function from image numbers to their vectors; to_vectors: see `retrieval.scores`."""
        stored = self.embeddings.of_attribute(attribute, self.taxonomy)
        stored = replace(stored, **{kind: None for kind in KINDS if kind not in SCORES[score]})
        return lambda items: to_vectors(score, stored.at(items)).numpy()

    def rank_by_classes(self, query: Embeddings, attribute: int, classes: list[int], k: int) -> Ranked:
        """Return the k images with the largest mean of `class_agreement` over K classes.

        query: embeddings for the attribute; classes: their numbers within the attribute. The mean of p_m bounds the
        score from above, so only two groups of images are scored: those with the largest bounds, then all whose bound
        reaches the k-th score of the first group.
        """
        ids = self.taxonomy.classes_of(attribute).start + np.array(classes)
        posterior = self.embeddings.posterior.T[ids].numpy()  # (K, I)
        space, columns, of_query = self.embeddings.classes, ids, query.classes  # (I, M, d), (K,), (1, M_n, d)
        if space is not None:
            of_query = of_query[:, classes]
        elif self.embeddings.attribute is not None:  # one space for all classes
            space, columns, of_query = self.embeddings.attribute, np.array([attribute]), query.attribute

        def score(items: np.ndarray) -> np.ndarray:
            pair = (None, None) if space is None else (space[items[:, None], columns].numpy(), of_query.numpy())
            return class_agreement(posterior[:, items].T, *pair).mean(axis=1)

        bound = MAX_AGREEMENT * np.mean(posterior, axis=0, dtype=np.float64)  # (I,)
        size = min(max(1024, 4 * k), len(bound))
        likely = np.argpartition(-bound, size - 1)[:size]
        return top_k(np.flatnonzero(bound >= np.partition(score(likely), -k)[-k]), score, self.ties, k)


def class_agreement(posterior: np.ndarray, phi: np.ndarray | None, query_phi: np.ndarray | None) -> np.ndarray:
    """(B, K) float64: p_m(c) (1 + cos(phi_m(q), phi_m(c))) / 2 of candidates c and a query q; p_m(c) without phi.

    posterior: (B, K). phi: (B, K, d) unit rows, or (B, 1, d) for all classes. query_phi: (1, K, d) or (1, 1, d).
    """
    agreement = 1.0 if phi is None else (1 + np.multiply(phi, query_phi, dtype=np.float64).sum(axis=2)) / 2
    return np.multiply(posterior, agreement, dtype=np.float64)
