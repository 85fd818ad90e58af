"""Average precision and recall from similarities and labels, the rule for ties, and means over queries.

A query is an (image, class it carries) pair; a candidate is relevant if it carries that class; one ranking of an
attribute's candidates serves all classes of an image. Where each image carries a single class this is the protocol of
ASEN (metric.py of the ASEN and ASEN++ code): a query without a relevant candidate scores 0 and still counts. Only the
M3-Net poster reports MAP@100 and Recall@100; `ap_100_hits` and `recall_100` are the readings that fit its numbers.

All metrics are fractions in [0, 1]. Letters: Q query images, C candidates, M_n classes, P (query image, class) pairs.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor


def tie_keys(names: Sequence[str]) -> Tensor:
    """(C,) int64, never negative: a hash of each candidate's name. Equal similarities are ranked by rising hash.

    The hash depends on neither the file order nor the class, so a constant embedding scores like a random ranking.
    """
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


@dataclass(frozen=True)
class QueryMetrics:
    """The metrics of one attribute's queries; row p of each (P,) array is one (query image, class it carries) pair.

    The fields are named for the protocol's k = 100. R: relevant candidates, h: those among the first k ranks, Prec_i:
    share of relevant candidates among the first i ranks.
    """

    query: np.ndarray  # (P,) int: index of the query image, rising
    class_id: np.ndarray  # (P,) int: index of the class among the label columns
    relevant: np.ndarray  # (P,) int: R
    ap_all: np.ndarray  # (P,) float64: sum of Prec_i over the ranks i of all relevant candidates, divided by R
    ap_r: np.ndarray  # (P,) float64: the same sum over the relevant ranks i <= R, divided by R (Musgrave et al. 2020)
    ap_100_hits: np.ndarray  # (P,) float64: sum of Prec_i over the relevant ranks i <= k, divided by h (the poster's)
    ap_100_min: np.ndarray  # (P,) float64: the same sum divided by min(R, k) (the usual MAP@k elsewhere)
    recall_100: np.ndarray  # (P,) float64: h / R


def evaluate_attribute(
    similarity: Tensor, query_labels: ArrayLike, candidate_labels: ArrayLike, k: int = 100
) -> QueryMetrics:
    """Return the metrics of every (query, class) pair; a quotient with divisor 0 counts as 0.

    similarity: (Q, C) floats without NaN, equal values rank in the order of their columns; a candidate of -inf is left
    out for that query. query_labels: (Q, M_n) bool
    and candidate_labels: (C, M_n) bool. k >= 1 may exceed C. Queries are independent: any block of them gets the same
    bits. Raises ValueError for shapes that do not match.
    """
    query_labels, candidate_labels = np.asarray(query_labels, dtype=bool), np.asarray(candidate_labels, dtype=bool)
    if similarity.shape != (len(query_labels), len(candidate_labels)):
        raise ValueError(f"labels of {len(query_labels)} x {len(candidate_labels)}, similarity {[*similarity.shape]}")
    query, class_id = query_labels.nonzero()  # (P,), (P,)
    relevant, rank = relevant_ranks(similarity.numpy(), candidate_labels, query, class_id)
    pair = np.repeat(np.arange(len(query)), relevant)  # (sum of R,)
    j = np.arange(1, len(rank) + 1) - np.repeat(relevant.cumsum() - relevant, relevant)  # 1 to R in each pair
    precision, early = j / rank, rank <= k  # the j-th relevant candidate of a pair, at rank r_j, has precision j / r_j
    hits = np.bincount(pair[early], minlength=len(query))
    sum_k = np.bincount(pair[early], precision[early], minlength=len(query))
    return QueryMetrics(
        query=query,
        class_id=class_id,
        relevant=relevant,
        ap_all=divide(np.bincount(pair, precision, minlength=len(query)), relevant),
        ap_r=divide(np.bincount(pair, precision * (rank <= relevant[pair]), minlength=len(query)), relevant),
        ap_100_hits=divide(sum_k, hits),
        ap_100_min=divide(sum_k, np.minimum(relevant, k)),
        recall_100=divide(hits, relevant),
    )


def relevant_ranks(
    similarity: np.ndarray, candidate_labels: np.ndarray, query: np.ndarray, class_id: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) R of each pair, and (sum of R,) the ranks of its relevant candidates, rising, pair after pair.

    The rank of a value is 1 + the number of larger values in its row: looked up in the sorted row, since sorting values
    is several times faster than sorting indices. Among equal values, the number of earlier columns is added.
    """
    relevant_columns = {m: np.flatnonzero(candidate_labels[:, m]) for m in np.unique(class_id).tolist()}
    ranks, sorted_query = [np.zeros(0, np.int64)], None
    for q, m in zip(query.tolist(), class_id.tolist(), strict=True):
        if q != sorted_query:
            rising, sorted_query = np.sort(similarity[q]), q
        values = np.sort(similarity[q][relevant_columns[m]])[::-1]  # (R,), falling
        values = values[values > -np.inf]
        not_larger = np.searchsorted(rising, values, side="right")
        rank = 1 + len(rising) - not_larger  # of the first of equal values
        tied = rising[not_larger - 2] == values
        if tied.any():
            columns = np.flatnonzero(np.isin(similarity[q], values[tied]))
            columns = columns[np.argsort(-similarity[q][columns], kind="stable")]
            falling = -similarity[q][columns]
            behind_first = np.arange(len(columns)) - np.searchsorted(falling, falling)
            rank[tied] += behind_first[candidate_labels[columns, m]]
        ranks.append(rank)
    return np.array([len(rank) for rank in ranks[1:]], dtype=np.int64), np.concatenate(ranks)


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and 0 where b is 0."""
    return np.divide(a, b, out=np.zeros(len(a)), where=b > 0)


def concatenate(blocks: Sequence[QueryMetrics]) -> QueryMetrics:
    """Return the metrics of several blocks of queries as one."""
    columns = zip(*(vars(block).values() for block in blocks), strict=True)
    return QueryMetrics(*(np.concatenate(column) for column in columns))


def expected_random_ap(relevant: ArrayLike, candidates: int) -> np.ndarray:
    """Expected AP@all of a uniformly random ranking of C candidates of which R are relevant, in the shape of R.

    Rank i is relevant with probability R / C, and then each rank before it with (R - 1) / (C - 1), hence
    E = (1/R) sum_i (R/C) (1 + (i - 1) (R - 1)/(C - 1)) / i = (H_C + (C - H_C) (R - 1)/(C - 1)) / C
    with H_C = 1 + 1/2 + ... + 1/C. A little above R / C; 0 where R is 0.
    """
    R, C = np.asarray(relevant), candidates
    H = np.sum(1 / np.arange(1, C + 1))
    return np.where(R > 0, (H + (C - H) * (R - 1) / max(C - 1, 1)) / C, 0.0)


def measured(by_attribute: Mapping[str, QueryMetrics]) -> dict[str, QueryMetrics]:
    """Return the attributes that can be measured: those with a query that has a relevant candidate."""
    return {name: values for name, values in by_attribute.items() if values.relevant.any()}


def summarise(by_attribute: Mapping[str, QueryMetrics]) -> dict:
    """Return the means of every metric, for `to_json`.

    {"map_all": {"overall_by_query", "mean_over_attributes", "attributes": {name: mean}}, "map_r": the same,
    "map_100_hits", "map_100_min", "recall_100", "queries": {name: P}}. overall_by_query is the mean over all
    pairs of all attributes, the "overall" of the ASEN code and the poster: attributes with more queries weigh more.
    An attribute that can't be measured (see `measured`) is NaN and takes no part in the other means, which are NaN if
    there is no other attribute.
    """
    summary: dict = {}
    for field in ("ap_all", "ap_r", "ap_100_hits", "ap_100_min", "recall_100"):
        values = {name: getattr(of_attribute, field) for name, of_attribute in measured(by_attribute).items()}
        means = {name: float(v.mean()) for name, v in values.items()}
        summary[field.replace("ap_", "map_")] = {
            "overall_by_query": float(np.concatenate(list(values.values())).mean()) if values else math.nan,
            "mean_over_attributes": float(np.mean(list(means.values()))) if means else math.nan,
            "attributes": {name: means.get(name, math.nan) for name in by_attribute},
        }
    return summary | {"queries": {name: len(values.query) for name, values in by_attribute.items()}}


def to_json(values: dict) -> str:
    """JSON with null for NaN, and numbers rounded to six decimals: more would be noise in a diff."""
    numbers = {"parse_float": lambda text: round(float(text), 6), "parse_constant": lambda _: None}
    return json.dumps(json.loads(json.dumps(values), **numbers), indent=1) + "\n"
