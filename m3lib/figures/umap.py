"""Two-dimensional UMAP positions; the compiled code of UMAP is cached on disk."""

import functools
import warnings

import numba
import numpy as np

from m3lib.config import Umap

# Without a cache, numba compiles UMAP for ten seconds in every process.
numba.njit = functools.partial(numba.njit, cache=True)

from umap import UMAP  # noqa: E402

MIN_POINTS = 5


def positions(vectors: np.ndarray, settings: Umap, seed: int) -> np.ndarray:
    """(A, 2) UMAP positions of (A, d) vectors by cosine; one thread and a seed make the result repeatable.

    Positions of fewer than MIN_POINTS vectors are NaN: a neighbourhood needs neighbours.
    """
    if len(vectors) < MIN_POINTS:
        return np.full((len(vectors), 2), np.nan)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="n_jobs value 1 overridden")
        options = {
            "n_neighbors": min(settings.neighbors, len(vectors) - 1),
            "min_dist": settings.min_dist,
            "metric": "cosine",
        }
        return UMAP(random_state=seed, n_jobs=1, **options).fit_transform(vectors)
