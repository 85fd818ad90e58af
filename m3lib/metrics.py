"""Ranks and scores: similarities in, average precision and recall out; no model, no files.

One protocol serves every data set. A query is a pair (image, positive class); a candidate is relevant if it carries
that class; one ranking of an attribute's candidates serves all classes of an image. Where each image carries a single
class this is the ASEN protocol, whose definitions (metric.py of the ASEN and ASEN++ code) are kept: a query without a
relevant candidate scores 0 and still counts. MAP@100 and Recall@100 stand only on the M3-Net poster; `ap_100_hits`
and `recall_100` are the two readings that fit its figures.

All scores are fractions in [0, 1].
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

BLOCK = 1 << 20  # (pair, candidate) cells looked at together: 10 MB, and up to 60 MB if every candidate is relevant


def tie_keys(names: Sequence[str]) -> Tensor:
    """(C,) int64, never negative: a hash of each candidate's name, the order in which equal similarities fall.

    It depends on neither file order nor class, so an embedding that is constant scores like a random ranking.
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def rank_order(similarity: Tensor, tie: Tensor) -> Tensor:
    """(Q, C) int64: each query's candidates by falling similarity, equal ones by rising tie key.

    similarity: (Q, C) floats. tie: (C,) int64, distinct, so that the ranking does not depend on the order in which
    candidates are given. Rows are independent: any block of queries is ranked as the whole would be.
    Raises ValueError for NaN, which no ranking can place.
    """
    if similarity.ndim != 2 or tie.shape != similarity.shape[1:]:
        raise ValueError(f"want (Q, C) similarities and (C,) tie keys, got {[*similarity.shape]} and {[*tie.shape]}")
    if similarity.isnan().any():
        raise ValueError("some similarities are NaN, so there is no ranking: check the embeddings for NaN or Inf")
    by_tie = tie.to(similarity.device).argsort(stable=True)  # (C,)
    return by_tie[similarity[:, by_tie].sort(dim=1, descending=True, stable=True).indices]  # (Q, C)


@dataclass(frozen=True)
class Scores:
    """What one attribute's rankings are worth; row p of each (P,) array is one (query image, positive class) pair.

    The fields are named for the protocol's k = 100. With h relevant candidates among the first k and R in all,
    and Prec_i the share of relevant candidates among the first i:
    """

    query: np.ndarray  # (P,) int: row of query_labels, rising
    class_id: np.ndarray  # (P,) int: column of the labels, so local to the attribute if they hold its classes alone
    relevant: np.ndarray  # (P,) int: R
    ap_all: np.ndarray  # (P,) float64: sum of Prec_i over all relevant ranks i, over R
    ap_100_hits: np.ndarray  # (P,) float64: sum of Prec_i over relevant ranks i <= k, over h (the poster's MAP@100)
    ap_100_min: np.ndarray  # (P,) float64: the same sum over min(R, k) (the usual MAP@k elsewhere)
    recall_100: np.ndarray  # (P,) float64: h / R


def evaluate_attribute(order: Tensor, query_labels: ArrayLike, candidate_labels: ArrayLike, k: int = 100) -> Scores:
    """Scores of every (query, positive class) pair; a quotient whose divisor is 0 counts as 0.

    order: (Q, C) from `rank_order`. query_labels: (Q, K) bool and candidate_labels: (C, K) bool, arrays or tensors,
    over the same classes; a query without a positive class asks nothing. k >= 1 may exceed C.
    Raises ValueError for shapes that don't belong together.
    """
    query_labels = torch.as_tensor(query_labels, dtype=torch.bool)
    candidate_labels = torch.as_tensor(candidate_labels, dtype=torch.bool)
    (num_queries, num_candidates), num_classes = order.shape, query_labels.shape[-1]
    if query_labels.shape != (num_queries, num_classes) or candidate_labels.shape != (num_candidates, num_classes):
        shapes = [[*array.shape] for array in (order, query_labels, candidate_labels)]
        raise ValueError(f"want (Q, C) ranks, (Q, K) and (C, K) labels, got {shapes}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    query, class_id = query_labels.to(order.device).nonzero(as_tuple=True)  # (P,), (P,)
    carriers = candidate_labels.to(order.device).T.contiguous()  # (K, C)
    step = max(1, BLOCK // max(1, num_candidates))
    blocks = []  # of (4, <= step)
    for q, v in zip(query.split(step), class_id.split(step), strict=True):
        hit = carriers[v].gather(1, order[q])  # (step, C), True where the candidate at that rank is relevant
        blocks.append(_precision_sums(hit.cpu().numpy(), k))
    relevant, hits, sum_all, sum_k = np.concatenate(blocks, axis=1)  # (P,) each
    return Scores(
        query=query.cpu().numpy(),
        class_id=class_id.cpu().numpy(),
        relevant=relevant.astype(np.int64),
        ap_all=_divide(sum_all, relevant),
        ap_100_hits=_divide(sum_k, hits),
        ap_100_min=_divide(sum_k, np.minimum(relevant, k)),
        recall_100=_divide(hits, relevant),
    )


def _precision_sums(hit: np.ndarray, k: int) -> np.ndarray:
    """(4, B) float64: R, h, and the sums of Prec_i over all relevant ranks and over those up to k.

    hit: (B, C) bool. Only the relevant ranks are visited: the j-th of a row, at rank r_j, has precision j / r_j.
    """
    rows, num_candidates = hit.shape
    relevant = hit.sum(axis=1)  # (B,)
    row, column = np.divmod(np.flatnonzero(hit), num_candidates)  # (n,), (n,), row by row in rank order
    j = np.arange(1, len(row) + 1) - np.repeat(relevant.cumsum() - relevant, relevant)  # (n,), 1 to R in each row
    precision = j / (column + 1)  # (n,)
    early = column < k  # (n,)
    hits = np.bincount(row[early], minlength=rows)
    sum_k = np.bincount(row[early], precision[early], minlength=rows)
    return np.stack([relevant, hits, np.bincount(row, precision, minlength=rows), sum_k])


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def expected_random_ap(relevant: ArrayLike, candidates: int) -> np.ndarray:
    """Expected AP@all of a uniformly random ranking of C candidates of which R are relevant, in the shape of R.

    Rank i is relevant with probability R / C, and then each rank before it with (R - 1) / (C - 1), hence
    E = (1/R) sum_i (R/C) (1 + (i - 1) (R - 1)/(C - 1)) / i = (H_C + (C - H_C) (R - 1)/(C - 1)) / C
    with H_C = 1 + 1/2 + ... + 1/C. A little above R / C; 0 where R is 0.
    """
    R, C = np.asarray(relevant), candidates
    if C < 1 or np.any((R < 0) | (R > C)):
        raise ValueError(f"want 0 <= R <= C and C >= 1, got C = {C} and R = {relevant}")
    H = np.sum(1 / np.arange(1, C + 1))
    return np.where(R > 0, (H + (C - H) * (R - 1) / max(C - 1, 1)) / C, 0.0)


SUMMARIES = {
    "map_all": "ap_all",
    "map_100_hits": "ap_100_hits",
    "map_100_min": "ap_100_min",
    "recall_100": "recall_100",
}


def summarise(scores: Mapping[str, Scores]) -> dict:
    """Means of every metric, as fractions, ready for JSON; `scores` maps an attribute's name to its scores.

    {"map_all": {"overall_by_query", "mean_over_attributes", "attributes": {name: mean}}, "map_100_hits": the same,
    "map_100_min", "recall_100", "queries": {name: pairs}}. overall_by_query is the mean over all pairs of all
    attributes, the "overall" of the ASEN code and the poster: attributes with more queries weigh more.
    Raises ValueError where an attribute has no query.
    """
    silent = [name for name, s in scores.items() if not len(s.query)]
    if silent or not scores:
        raise ValueError(f"no query to average over for {', '.join(silent) or 'any attribute'}")
    summary: dict = {key: _means({n: getattr(s, field) for n, s in scores.items()}) for key, field in SUMMARIES.items()}
    return summary | {"queries": {name: len(s.query) for name, s in scores.items()}}


def _means(values: Mapping[str, np.ndarray]) -> dict:
    attributes = {name: float(v.mean()) for name, v in values.items()}
    return {
        "overall_by_query": float(np.concatenate(list(values.values())).mean()),
        "mean_over_attributes": float(np.mean(list(attributes.values()))),
        "attributes": attributes,
    }


def bootstrap(values: np.ndarray, groups: np.ndarray, repeats: int = 1000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values` (P,), resampling query images.

    groups: (P,) the query image of each pair, one id across attributes; its pairs share a ranking, so they are drawn
    together. The interval speaks of the choice of queries alone, not of training seeds or candidates.
    """
    low, high = np.percentile(_resampled_means(values, groups, repeats, seed), [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    a: np.ndarray, b: np.ndarray, groups: np.ndarray, repeats: int = 1000, seed: int = 0
) -> tuple[float, float, float, float]:
    """(difference, low, high, p) of mean(a) - mean(b): two variants scored on the same (P,) pairs.

    low and high: 95 % percentile interval. p: two-sided, the share of resamples that stray from the observed
    difference at least as far as that lies from 0 (Efron and Tibshirani 1993, section 16.4); never under
    1 / (repeats + 1). Equal variants get p = 1. Raises ValueError when a and b differ in length.
    """
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)  # (P,), ValueError if unlike
    means = _resampled_means(difference, groups, repeats, seed)  # (repeats,)
    observed = difference.mean()
    strays = np.count_nonzero(np.abs(means - observed) >= np.abs(observed))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(observed), float(low), float(high), (1 + strays) / (1 + repeats)


def _resampled_means(values: np.ndarray, groups: np.ndarray, repeats: int, seed: int) -> np.ndarray:
    """(repeats,) means over pairs, each from G groups drawn with replacement out of the G there are."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values) or values.shape != np.shape(groups):
        raise ValueError(f"want one group a value and some of both, got {values.shape} and {np.shape(groups)}")
    _, member = np.unique(groups, return_inverse=True)  # (P,), 0 to G - 1
    totals = np.stack([np.bincount(member, values), np.bincount(member)], axis=1)  # (G, 2): sum, pairs
    rng = np.random.default_rng(seed)
    draws = (totals[rng.integers(len(totals), size=len(totals))].sum(axis=0) for _ in range(repeats))
    sums = np.stack(list(draws))  # (repeats, 2)
    return sums[:, 0] / sums[:, 1]


def to_json(values: dict) -> str:
    """JSON with numbers to six decimals: more would be noise in a diff."""
    return json.dumps(json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 6)), indent=1) + "\n"
