"""Random embeddings and a random split over the small taxonomy of `tiny`."""

import numpy as np
import torch

from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings
from tiny import TAXONOMY, generator, make_prepared, random_labels, unit_rows

N, M, D = TAXONOMY.num_attributes, TAXONOMY.num_classes, 6


def make_embeddings(rows: np.ndarray | int, seed: int = 0) -> Embeddings:
    """Half-precision embeddings of all kinds, of given manifest rows or of the first so many."""
    rows = np.arange(rows) if isinstance(rows, int) else rows
    posterior = torch.rand(len(rows), M, generator=generator(seed)).half()
    attribute, classes = unit_rows(len(rows), N, D, seed=seed + 1), unit_rows(len(rows), M, D, seed=seed + 2)
    return Embeddings(torch.from_numpy(rows), attribute.half(), posterior, classes.half())


def make_split(size: int = 60, seed: int = 0) -> Prepared:
    """Partial labels; train, valid and test, the latter two with queries and candidates."""
    rng = np.random.default_rng(seed)
    kinds = [("train", ""), *[(s, r) for s in ("valid", "test") for r in ("query", "candidate")]]
    return make_prepared(random_labels("partial", size, rng), [kinds[i] for i in rng.integers(0, 5, size)])


def labelled_rows(prepared: Prepared, split: str, role: str, attribute: int) -> list[int]:
    """Manifest rows of a split and role with a known label for an attribute, by a loop over the manifest."""
    classes = prepared.taxonomy.classes_of(attribute)
    return [
        i
        for i, row in enumerate(prepared.manifest.itertuples())
        if (row.split, row.role) == (split, role) and any(classes.start <= m < classes.stop for m in row.labels)
    ]
