"""UMAP, with its compiled code kept on disk."""

import functools
import warnings

import numba
import numpy as np

from m3lib.config import Umap

# UMAP compiles for ten seconds in every process unless numba is told to keep the result: once per machine is enough.
numba.njit = functools.partial(numba.njit, cache=True)

from umap import UMAP  # noqa: E402


def place(vectors: np.ndarray, settings: Umap, seed: int) -> np.ndarray:
    """(A, 2) positions of (A, d) vectors by cosine; one thread and one seed, so that the picture repeats."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value 1 overridden")
        options = {"n_neighbors": settings.neighbors, "min_dist": settings.min_dist, "metric": "cosine"}
        return UMAP(random_state=seed, n_jobs=1, **options).fit_transform(vectors)
