"""Metrics and tie rule against literals, naive loops, scikit-learn, closed forms, and the published tables."""

import csv
import json
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from m3lib.retrieval.metrics import (
    QueryMetrics,
    concatenate,
    evaluate_attribute,
    expected_random_ap,
    summarise,
    tie_keys,
    to_json,
)

FIELDS = ("query", "class_id", "relevant", "ap_all", "ap_r", "ap_100_hits", "ap_100_min", "recall_100")
SHARED = Path(__file__).parents[3] / "shared"


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"rng seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


def random_case(rng, multi, levels=4):
    """Similarities on a few levels, so that nearly all tie; labels; k, sometimes above the number of candidates."""
    Q, C, M = rng.integers(1, 12), rng.integers(1, 40), rng.integers(1, 6)
    if multi:
        query_labels, candidate_labels = rng.random((Q, M)) < 0.4, rng.random((C, M)) < 0.3
    else:
        query_labels, candidate_labels = (np.eye(M, dtype=bool)[rng.integers(M, size=size)] for size in (Q, C))
    similarity = torch.from_numpy((rng.integers(levels, size=(Q, C)) - levels // 2).astype(np.float32))
    similarity[torch.from_numpy(rng.random((Q, C)) < 0.1)] *= -0.0  # equal to 0, although the bits differ
    return similarity, query_labels, candidate_labels, int(rng.integers(1, C + 4))


def naive(similarity, query_labels, candidate_labels, k):
    """The definitions of the metrics, one candidate at a time."""
    rows = []
    for i, s in enumerate(similarity.tolist()):
        order = sorted(range(len(s)), key=lambda c: -s[c])  # stable: equal values in the order of their columns
        for m in np.flatnonzero(query_labels[i]):
            ranks = [rank for rank, c in enumerate(order, start=1) if candidate_labels[c, m]]
            precisions = [j / rank for j, rank in enumerate(ranks, start=1)]
            R, hits = len(ranks), sum(rank <= k for rank in ranks)
            total, total_k = sum(precisions), sum(precisions[:hits])
            total_r = sum(p for p, rank in zip(precisions, ranks, strict=True) if rank <= R)
            by_k = (total_k / max(hits, 1), total_k / max(min(R, k), 1), hits / max(R, 1))
            rows.append((i, m, R, total / max(R, 1), total_r / max(R, 1), *by_k))
    return np.array(rows, dtype=float).reshape(-1, len(FIELDS)).T


def by_order(order):
    """(Q, C) similarities that rank the candidates in this order."""
    return -order.argsort(dim=1).float()


# ---- evaluate_attribute


def test_literal_metrics():
    # One query with classes 0, 1 and 2; relevant ranks are 1, 3 and 6 for class 0, 4 for class 1, none for class 2.
    similarity = by_order(torch.tensor([[3, 0, 5, 1, 2, 4]]))
    candidate_labels = np.zeros((6, 3), dtype=bool)
    candidate_labels[[3, 5, 4], 0] = True
    candidate_labels[1, 1] = True
    query_labels = np.ones((1, 3), dtype=bool)
    at_3 = evaluate_attribute(similarity, query_labels, candidate_labels, k=3)
    assert at_3.query.tolist() == [0, 0, 0]
    assert at_3.class_id.tolist() == [0, 1, 2]
    assert at_3.relevant.tolist() == [3, 1, 0]
    assert at_3.ap_all == pytest.approx([(1 + 2 / 3 + 3 / 6) / 3, 1 / 4, 0])
    assert at_3.ap_r == pytest.approx([(1 + 2 / 3) / 3, 0, 0])
    assert at_3.ap_100_hits == pytest.approx([(1 + 2 / 3) / 2, 0, 0])
    assert at_3.ap_100_min == pytest.approx([(1 + 2 / 3) / 3, 0, 0])
    assert at_3.recall_100 == pytest.approx([2 / 3, 0, 0])

    at_1 = evaluate_attribute(similarity, query_labels, candidate_labels, k=1)
    assert (at_1.ap_100_hits[0], at_1.ap_100_min[0], at_1.recall_100[0]) == pytest.approx((1, 1, 1 / 3))
    for k in (6, 100):  # every rank is within k
        uncut = evaluate_attribute(similarity, query_labels, candidate_labels, k=k)
        assert uncut.ap_100_hits == pytest.approx(uncut.ap_all)
        assert uncut.ap_100_min == pytest.approx(uncut.ap_all)
        assert uncut.recall_100.tolist() == [1, 1, 0]


def test_a_query_without_classes_has_no_pairs():
    metrics = evaluate_attribute(torch.zeros(1, 2), np.zeros((1, 2), dtype=bool), np.ones((2, 2), dtype=bool))
    assert all(len(getattr(metrics, field)) == 0 for field in FIELDS)


@pytest.mark.parametrize(("query", "candidate"), [((2, 3), (2, 3)), ((1, 3), (3, 3))])
def test_shapes_that_do_not_match_raise(query, candidate):
    with pytest.raises(ValueError, match=r"similarity \[1, 2\]"):
        evaluate_attribute(torch.zeros(1, 2), np.ones(query, dtype=bool), np.ones(candidate, dtype=bool))


@pytest.mark.parametrize("multi", [False, True])
@pytest.mark.parametrize("levels", [1, 4, 200])
def test_matches_a_naive_loop(rng, multi, levels):
    for _ in range(20):
        similarity, query_labels, candidate_labels, k = random_case(rng, multi, levels)
        metrics = evaluate_attribute(similarity, query_labels, candidate_labels, k)
        for field, expected in zip(FIELDS, naive(similarity, query_labels, candidate_labels, k), strict=True):
            np.testing.assert_allclose(getattr(metrics, field), expected, rtol=1e-12, err_msg=field)
            assert getattr(metrics, field).dtype == (np.int64 if field in FIELDS[:3] else np.float64)


def test_matches_scikit_learn(rng):
    similarity = torch.from_numpy(rng.permutation(30 * 200).reshape(30, 200).astype(np.float32))  # no ties
    query_labels, candidate_labels = rng.random((30, 5)) < 0.4, rng.random((200, 5)) < 0.2
    metrics = evaluate_attribute(similarity, query_labels, candidate_labels)
    pairs = zip(metrics.query, metrics.class_id, strict=True)
    expected = [average_precision_score(candidate_labels[:, m], similarity[i]) for i, m in pairs]
    np.testing.assert_allclose(metrics.ap_all, expected, rtol=1e-9)


def test_other_queries_do_not_change_a_bit(rng):
    similarity, query_labels = torch.rand(200, 90), rng.random((200, 3)) < 0.5
    candidate_labels = rng.random((90, 3)) < 0.3
    metrics = evaluate_attribute(similarity, query_labels, candidate_labels)
    order = rng.permutation(200)
    moved = evaluate_attribute(similarity[order], query_labels[order], candidate_labels)
    back = np.lexsort((moved.class_id, order[moved.query]))
    for field in FIELDS[1:]:
        np.testing.assert_array_equal(getattr(moved, field)[back], getattr(metrics, field), err_msg=field)


# ---- ties and the random ranking


def test_tie_keys_are_stable_and_spread():
    keys = tie_keys([f"img/{i:05}.jpg" for i in range(2000)])
    assert keys.dtype == torch.int64
    assert keys.min() >= 0
    assert len(keys.unique()) == 2000
    assert tie_keys(["a", "b"]).tolist() == [2340832890917691671, 4771952420932724666]  # b2sum -l 64, halved
    assert abs(torch.corrcoef(torch.stack([keys.argsort().float(), torch.arange(2000.0)]))[0, 1]) < 0.1


def test_a_constant_embedding_scores_like_a_random_ranking(rng):
    sizes = [3, 10, 47, 140]
    class_of = np.repeat(np.arange(4), sizes)  # candidates are sorted by class, the worst file order
    labels = np.eye(4, dtype=bool)
    constant = torch.zeros(4, len(class_of))
    assert evaluate_attribute(constant, labels, labels[class_of]).ap_all[0] == 1  # what broken ties would report
    aps = []
    for _ in range(300):
        by_tie = tie_keys([f"{rng.integers(2**40)}/{m}/{c}.jpg" for c, m in enumerate(class_of)]).argsort().numpy()
        aps.append(evaluate_attribute(constant, labels, labels[class_of[by_tie]]).ap_all)
    error = np.std(aps, axis=0) / np.sqrt(len(aps))
    assert np.all(np.abs(np.mean(aps, axis=0) - expected_random_ap(sizes, 200)) < 6 * error)


def test_expected_random_ap_by_exhaustion():
    for C in range(1, 9):
        assert expected_random_ap(0, C) == 0
        for R in range(1, C + 1):
            aps = [sum(Fraction(j, r) for j, r in enumerate(c, 1)) / R for c in combinations(range(1, C + 1), R)]
            assert float(expected_random_ap(R, C)) == pytest.approx(float(sum(aps) / len(aps)), rel=1e-14)
    assert expected_random_ap([[1, 2], [0, 3]], 3).shape == (2, 2)


# ---- summaries


def constant_metrics(count, ap, hits=0.0, minimum=0.0, recall=0.0, ap_r=0.0):
    index = np.arange(count)
    return QueryMetrics(index, index, index + 1, *(np.full(count, x) for x in (ap, ap_r, hits, minimum, recall)))


def test_summarise_literal():
    summary = summarise(
        {"sleeve": constant_metrics(3, 0.5, 0.8, 0.2, 0.1, 0.4), "neck": constant_metrics(1, 0.9, 0.4, 0, 1, 0.8)}
    )
    assert list(summary) == ["map_all", "map_r", "map_100_hits", "map_100_min", "recall_100", "queries"]
    assert summary["queries"] == {"sleeve": 3, "neck": 1}
    for key, overall, mean, sleeve, neck in [
        ("map_all", 0.6, 0.7, 0.5, 0.9),
        ("map_r", 0.5, 0.6, 0.4, 0.8),
        ("map_100_hits", 0.7, 0.6, 0.8, 0.4),
        ("map_100_min", 0.15, 0.1, 0.2, 0),
        ("recall_100", 0.325, 0.55, 0.1, 1),
    ]:
        means = summary[key]
        assert (means["overall_by_query"], means["mean_over_attributes"]) == pytest.approx((overall, mean))
        assert means["attributes"] == pytest.approx({"sleeve": sleeve, "neck": neck})


def test_json_has_six_decimals():
    values = {"a": {"b": 1 / 3, "n": 7, "t": "0.123456789"}, "none": float("nan"), "list": [1e-9, True]}
    rounded = {"a": {"b": 0.333333, "n": 7, "t": "0.123456789"}, "none": None, "list": [0.0, True]}
    assert to_json(values) == json.dumps(rounded, indent=1) + "\n"


def unanswered(count):
    """Queries without a relevant candidate: they score 0."""
    return replace(constant_metrics(count, 0.0), relevant=np.zeros(count, np.int64))


@pytest.mark.parametrize("unmeasured", [constant_metrics(0, 0.5), unanswered(4)], ids=["no query", "none relevant"])
def test_an_attribute_that_cannot_be_measured_takes_no_part_in_the_means(unmeasured):
    others = {"sleeve": constant_metrics(3, 0.5), "colour": constant_metrics(2, 0.25, 1)}
    summary, expected = summarise({"neck": unmeasured} | others), summarise(others)
    for key in ("map_all", "map_r", "map_100_hits", "map_100_min", "recall_100"):
        assert np.isnan(summary[key]["attributes"].pop("neck"))
        assert summary[key] == expected[key]
    assert summary["queries"]["neck"] == len(unmeasured.query)


def test_a_query_without_a_relevant_candidate_counts_as_0_where_others_have_one():
    mixed = concatenate([constant_metrics(3, 0.8), unanswered(1)])
    assert summarise({"sleeve": mixed})["map_all"]["overall_by_query"] == pytest.approx(0.6)


@pytest.mark.parametrize("nothing", [{}, {"neck": constant_metrics(0, 0.5)}, {"neck": unanswered(2)}])
def test_nothing_measured_is_null_in_json(nothing):
    summary = json.loads(to_json(summarise(nothing)))
    assert summary["map_all"]["overall_by_query"] is summary["recall_100"]["mean_over_attributes"] is None
    assert summary["map_all"]["attributes"] == dict.fromkeys(nothing)


# ---- against the released splits and the poster (their random ranking: tests/prepare/test_real_splits.py)


@pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="the released split files are not here")
@pytest.mark.parametrize(("data_set", "tolerance", "suspect"), [("fashionai", 0.01, ()), ("darn", 0.12, ("ASEN++",))])
def test_pooled_overall_is_the_published_overall(data_set, tolerance, suspect):
    with (SHARED / "design" / "published.csv").open() as lines:
        table = [r for r in csv.DictReader(lines) if r["dataset"] == data_set and r["metric"] == "MAP@all"]
    rows = np.loadtxt(SHARED / "splits" / data_set / "query_test.txt", dtype=int)  # image, attribute, class
    counts = np.bincount(rows[:, 1])
    systems = sorted({r["system"] for r in table} - set(suspect))
    assert len(systems) == 7 - len(suspect)
    for system in systems:
        *attributes, overall = [r for r in table if r["system"] == system]  # in the order of the attribute numbers
        assert overall["attribute"] == "overall"
        pairs = zip(attributes, counts, strict=True)
        summary = summarise({r["attribute"]: constant_metrics(n, float(r["percent"]) / 100) for r, n in pairs})
        assert 100 * summary["map_all"]["overall_by_query"] == pytest.approx(float(overall["percent"]), abs=tolerance)
