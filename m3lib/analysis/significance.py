"""Is a difference larger than chance? Bootstrap intervals over query images (Efron and Tibshirani 1993).

The intervals cover the choice of the query images only, not training seeds or candidates.
"""

import math

import numpy as np

from m3lib.data.manifest import Prepared
from m3lib.retrieval.metrics import QueryMetrics

MIN_IMAGES = 6  # if five query images all favour one system, chance does so too in 2 of 2^5 cases: more than 5 %


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, repeats: int = 1000, seed: int = 0
) -> tuple[float, float, float, float]:
    """Return (difference, low, high, p) of mean(a) - mean(b) for two variants on the same P pairs.

    groups: (P,) the query image of each pair, with the same id under all attributes. The pairs of an image share a
    ranking, so they are drawn together. low and high: 95 % percentile interval. p: two-sided, the share of resamples
    that differ from the observed difference by at least its absolute value (Efron and Tibshirani 1993, section 16.4);
    never below 1 / (repeats + 1). Equal variants get p = 1. With fewer than MIN_IMAGES query images, low, high and p
    are NaN; without any, the difference is too. Raises ValueError when a, b and groups differ in length.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)  # (P,)
    images, member = np.unique(groups, return_inverse=True)  # (G,); (P,), 0 to G - 1
    if len(images) < MIN_IMAGES:
        return float(difference.mean()) if len(images) else math.nan, math.nan, math.nan, math.nan
    totals = np.stack([np.bincount(member, difference), np.bincount(member)], axis=1)  # (G, 2): sum, pairs
    rng = np.random.default_rng(seed)
    draws = (totals[rng.integers(len(totals), size=len(totals))].sum(axis=0) for _ in range(repeats))
    sums = np.stack(list(draws))  # (repeats, 2)
    means, observed = sums[:, 0] / sums[:, 1], difference.mean()
    as_far = np.count_nonzero(np.abs(means - observed) >= np.abs(observed))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(observed), float(low), float(high), (1 + as_far) / (1 + repeats)


def query_images(prepared: Prepared, split: str, results: dict[str, QueryMetrics]) -> np.ndarray:
    """(P,) the manifest row of each pair's query image, attribute after attribute: the groups of a bootstrap."""
    rows, images = prepared.rows(split, "query"), [np.zeros(0, np.int64)]
    for name, of_attribute in results.items():
        classes = prepared.taxonomy.classes_of(prepared.taxonomy.names.index(name))
        known = prepared.labels[rows][:, classes].any(axis=1)
        images.append(rows[known][of_attribute.query])
    return np.concatenate(images)
