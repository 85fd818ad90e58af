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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

BLOCK = 1 << 24  # (pair, candidate) cells looked at together on a GPU: 16 MB, and 128 MB if every one is relevant
PAIRS = 64  # (query, class) pairs that a thread takes at a time
FEW = 32  # tied values of a row, above which its whole order is found
NAN = "some similarities are NaN, so there is no ranking"


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
    Raises FloatingPointError for NaN, which no ranking can place.
    """
    if similarity.ndim != 2 or tie.shape != similarity.shape[1:]:
        raise ValueError(f"want (Q, C) similarities and (C,) tie keys, got {[*similarity.shape]} and {[*tie.shape]}")
    if similarity.isnan().any():
        raise FloatingPointError(NAN)
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


def evaluate_attribute(
    similarity: Tensor, tie: Tensor, query_labels: ArrayLike, candidate_labels: ArrayLike, k: int = 100
) -> Scores:
    """Scores of every (query, positive class) pair; a quotient whose divisor is 0 counts as 0.

    similarity: (Q, C) floats and tie: (C,) distinct int64, as for `rank_order`; columns in the order of their tie keys
    save a copy. query_labels: (Q, K) bool and candidate_labels: (C, K) bool, arrays or tensors, over the same classes;
    a query without a positive class asks nothing. k >= 1 may exceed C. Queries are independent: any block of them
    scores as the whole would. On the CPU, rows are shared among torch's threads.
    Raises ValueError for shapes that don't belong together, FloatingPointError for NaN, which no ranking can place.
    """
    query_labels = torch.as_tensor(query_labels, dtype=torch.bool).cpu()
    candidate_labels = torch.as_tensor(candidate_labels, dtype=torch.bool).cpu()
    (num_queries, num_candidates), num_classes = similarity.shape, query_labels.shape[-1]
    if (
        query_labels.shape != (num_queries, num_classes)
        or candidate_labels.shape != (num_candidates, num_classes)
        or tie.shape != (num_candidates,)
    ):
        shapes = [[*array.shape] for array in (similarity, tie, query_labels, candidate_labels)]
        raise ValueError(f"want (Q, C) similarities, (C,) tie keys, (Q, K) and (C, K) labels, got {shapes}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")

    tie = tie.cpu()
    if (tie.diff() <= 0).any():
        by_tie = tie.argsort()
        similarity, candidate_labels = similarity[:, by_tie.to(similarity.device)], candidate_labels[by_tie]
    query, class_id = query_labels.nonzero(as_tuple=True)  # (P,), (P,)
    carriers = candidate_labels.T.contiguous()  # (K, C)
    find = ranks_by_search if similarity.device.type == "cpu" else ranks_by_sorting
    relevant, rank = find(similarity, carriers, query, class_id)
    hits, sum_all, sum_k = precision_sums(relevant, rank, k)  # (P,) each
    return Scores(
        query=query.numpy(),
        class_id=class_id.numpy(),
        relevant=relevant,
        ap_all=_divide(sum_all, relevant),
        ap_100_hits=_divide(sum_k, hits),
        ap_100_min=_divide(sum_k, np.minimum(relevant, k)),
        recall_100=_divide(hits, relevant),
    )


def join(parts: Sequence[Scores]) -> Scores:
    """Scores of several blocks of queries, one after the other."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return Scores(*(np.concatenate(column) for column in columns))


def ranks_by_search(
    similarity: Tensor, carriers: Tensor, query: Tensor, class_id: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) R of every pair, and (sum of R,) the ranks of its relevant candidates, rising, pair after pair.

    Sorting the values of a row alone is several times quicker than finding its order; the relevant ones are then looked
    up in it. Only a row with a tie that a relevant candidate is part of needs the order.
    similarity: (Q, C), equal values to fall in the order of the columns; carriers: (K, C) bool.
    """
    rows, carriers, queries = similarity.numpy(), carriers.numpy(), query.numpy()
    members = {v: np.flatnonzero(carriers[v]) for v in class_id.unique().tolist()}  # class to (R,) columns
    classes, size = class_id.tolist(), rows.shape[1]

    def ranks_of(start: int) -> list[np.ndarray]:
        asked, found = queries[start : start + PAIRS], []
        first = asked[0]
        ordered = np.sort(rows[first : asked[-1] + 1], axis=1)  # rising, NaN at the end
        if np.isnan(ordered[:, -1:]).any():
            raise FloatingPointError(NAN)
        for q, v in zip(asked.tolist(), classes[start:], strict=False):
            line = ordered[q - first]
            values = np.sort(rows[q][members[v]])  # (R,)
            end = np.searchsorted(line, values, side="right")  # so many values up to this one
            tied = line[end - 2] == values  # with the one before; of a lowest value itself if all are equal
            rank = size + 1 - end
            if tied.any():
                rank = among_ties(rows[q], carriers[v], values, rank, np.unique(values[tied]))
            found.append(rank[::-1])
        return found

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy lets other threads run while it sorts
        found = list(chain.from_iterable(pool.map(ranks_of, range(0, len(classes), PAIRS))))
    none = np.zeros(0, dtype=np.int64)
    return np.array([len(rank) for rank in found], dtype=np.int64), np.concatenate([none, *found])


def among_ties(row: np.ndarray, carrier: np.ndarray, values: np.ndarray, rank: np.ndarray, tied: np.ndarray):
    """(R,) ranks, falling, where some values are tied: equal ones fall in the order of the columns.

    row: (C,); carrier: (C,) bool; values: (R,) of the carriers, rising; rank: (R,) of the first of each value's equals;
    tied: (t,) the values in question.
    """
    if len(tied) > FEW:
        return np.flatnonzero(carrier[np.argsort(-row, kind="stable")])[::-1] + 1
    for value in tied:
        rank[values == value] += np.flatnonzero(carrier[row == value])[::-1]
    return rank


def ranks_by_sorting(
    similarity: Tensor, carriers: Tensor, query: Tensor, class_id: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The same by torch alone, where sorting is the quickest: on a GPU."""
    if similarity.isnan().any():
        raise FloatingPointError(NAN)
    device, num_candidates = similarity.device, max(1, similarity.shape[1])
    order = similarity.sort(dim=1, descending=True, stable=True).indices  # (Q, C)
    carriers, step, found = carriers.to(device), max(1, BLOCK // num_candidates), []
    for q, v in zip(query.to(device).split(step), class_id.to(device).split(step), strict=True):
        hit = carriers[v].gather(1, order[q])  # (step, C), True where the candidate at that rank is relevant
        found.append((hit.sum(dim=1).cpu().numpy(), (hit.nonzero()[:, 1] + 1).cpu().numpy()))
    none = np.zeros(0, dtype=np.int64)
    relevant, ranks = zip((none, none), *found, strict=True)
    return np.concatenate(relevant), np.concatenate(ranks)


def precision_sums(relevant: np.ndarray, rank: np.ndarray, k: int) -> np.ndarray:
    """(3, P) float64: h, and the sums of Prec_i over all relevant ranks and over those up to k.

    relevant: (P,) R; rank: (sum of R,) rising in each pair. The j-th of a pair, at rank r_j, has precision j / r_j.
    """
    pair = np.repeat(np.arange(len(relevant)), relevant)  # (n,)
    j = np.arange(1, len(pair) + 1) - np.repeat(relevant.cumsum() - relevant, relevant)  # (n,), 1 to R in each pair
    precision, early = j / rank, rank <= k  # (n,), (n,)
    sums = [np.bincount(pair, precision, minlength=len(relevant))]
    sums.append(np.bincount(pair[early], precision[early], minlength=len(relevant)))
    return np.stack([np.bincount(pair[early], minlength=len(relevant)), *sums])


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
