"""Ranks and scores against literals, slow loops, scikit-learn, closed forms, and the published tables."""

import csv
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from m3lib.retrieval.metrics import (
    Scores,
    bootstrap,
    evaluate_attribute,
    expected_random_ap,
    join,
    paired_bootstrap,
    summarise,
    tie_keys,
)

FIELDS = ("query", "class_id", "relevant", "ap_all", "ap_100_hits", "ap_100_min", "recall_100")
SHARED = Path(__file__).parents[3] / "shared"
needs_splits = pytest.mark.skipif(not (SHARED / "splits").is_dir(), reason="the released split files are not here")


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"rng seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


def random_case(rng, multi, levels=4):
    """Similarities on a few levels, so nearly all tie; labels; tie keys; k, sometimes above the candidate count."""
    Q, C, K = rng.integers(1, 12), rng.integers(1, 40), rng.integers(1, 6)
    if multi:
        ql, cl = rng.random((Q, K)) < 0.4, rng.random((C, K)) < 0.3
    else:
        ql, cl = np.eye(K, dtype=bool)[rng.integers(K, size=Q)], np.eye(K, dtype=bool)[rng.integers(K, size=C)]
    similarity = torch.from_numpy(rng.integers(levels, size=(Q, C)).astype(np.float32))
    tie = tie_keys([f"{rng.integers(2**40)}/{c}" for c in range(C)])
    return similarity, tie, ql, cl, int(rng.integers(1, C + 4))


def naive(similarity, tie, query_labels, candidate_labels, k):
    """The definitions of methods 8.2 and 8.3, one candidate at a time."""
    rows = []
    for i, s in enumerate(similarity.tolist()):
        ranking = sorted(range(len(s)), key=lambda c: (-s[c], int(tie[c])))
        for v in range(query_labels.shape[1]):
            if not query_labels[i, v]:
                continue
            R = sum(bool(candidate_labels[c, v]) for c in ranking)
            found = hits = total = total_k = 0
            for rank, c in enumerate(ranking, start=1):
                if candidate_labels[c, v]:
                    found += 1
                    total += found / rank
                    if rank <= k:
                        hits += 1
                        total_k += found / rank
            rows.append(
                (
                    i,
                    v,
                    R,
                    total / R if R else 0,
                    total_k / hits if hits else 0,
                    total_k / min(R, k) if R else 0,
                    hits / R if R else 0,
                )
            )
    return np.array(rows, dtype=float).reshape(-1, len(FIELDS)).T


def ranked(order):
    """Similarities and tie keys that give this order, (Q, C)."""
    return -order.argsort(dim=1).float(), torch.arange(order.shape[1])


def assert_same(a: Scores, b: Scores):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(a, field), getattr(b, field), err_msg=field)


# ---- evaluate_attribute


def test_literal_scores():
    # One query with classes 0, 1 and 2; the ranking carries 0 at ranks 1, 3 and 6, 1 at rank 4, and 2 nowhere.
    order = torch.tensor([[3, 0, 5, 1, 2, 4]])
    candidate_labels = np.zeros((6, 3), dtype=bool)
    candidate_labels[[3, 5, 4], 0] = True
    candidate_labels[1, 1] = True
    query_labels = np.ones((1, 3), dtype=bool)
    scores = evaluate_attribute(*ranked(order), query_labels, candidate_labels, k=3)
    assert scores.query.tolist() == [0, 0, 0]
    assert scores.class_id.tolist() == [0, 1, 2]
    assert scores.relevant.tolist() == [3, 1, 0]
    assert scores.ap_all == pytest.approx([(1 + 2 / 3 + 3 / 6) / 3, 1 / 4, 0])
    assert scores.ap_100_hits == pytest.approx([(1 + 2 / 3) / 2, 0, 0])
    assert scores.ap_100_min == pytest.approx([(1 + 2 / 3) / 3, 0, 0])
    assert scores.recall_100 == pytest.approx([2 / 3, 0, 0])

    one = evaluate_attribute(*ranked(order), query_labels, candidate_labels, k=1)
    assert (one.ap_100_hits[0], one.ap_100_min[0], one.recall_100[0]) == pytest.approx((1, 1, 1 / 3))
    for k in (6, 100):  # a cut that cuts nothing
        whole = evaluate_attribute(*ranked(order), query_labels, candidate_labels, k=k)
        assert whole.ap_100_hits == pytest.approx(whole.ap_all)
        assert whole.ap_100_min == pytest.approx(whole.ap_all)
        assert whole.recall_100.tolist() == [1, 1, 0]


def test_nothing_asked_gives_no_pairs():
    scores = evaluate_attribute(
        *ranked(torch.tensor([[0, 1]])), np.zeros((1, 2), dtype=bool), np.ones((2, 2), dtype=bool)
    )
    assert all(len(getattr(scores, field)) == 0 for field in FIELDS)


def test_shapes_that_do_not_belong_together_are_refused():
    order = torch.tensor([[0, 1]])
    for q, c, k in [((2, 3), (2, 3), 1), ((1, 3), (3, 3), 1), ((1, 3), (2, 4), 1), ((1, 3), (2, 3), 0)]:
        with pytest.raises(ValueError, match=r"want|at least 1"):
            evaluate_attribute(*ranked(order), np.ones(q, dtype=bool), np.ones(c, dtype=bool), k=k)
    with pytest.raises(ValueError, match="tie keys"):
        evaluate_attribute(torch.zeros(1, 2), torch.arange(3), np.ones((1, 1), dtype=bool), np.ones((2, 1), dtype=bool))


@pytest.mark.parametrize("multi", [False, True])
def test_matches_a_naive_loop(rng, multi):
    for _ in range(40):
        similarity, tie, ql, cl, k = random_case(rng, multi)
        scores = evaluate_attribute(similarity, tie, ql, cl, k)
        for field, want in zip(FIELDS, naive(similarity, tie, ql, cl, k), strict=True):
            np.testing.assert_allclose(getattr(scores, field), want, rtol=1e-12, err_msg=field)
            assert getattr(scores, field).dtype == (np.int64 if field in FIELDS[:3] else np.float64)


def test_matches_scikit_learn(rng):
    similarity = torch.from_numpy(rng.permutation(30 * 200).reshape(30, 200).astype(np.float32))  # untied
    ql, cl = rng.random((30, 5)) < 0.4, rng.random((200, 5)) < 0.2
    scores = evaluate_attribute(similarity, torch.arange(200), ql, cl)
    want = [
        average_precision_score(cl[:, v], similarity[i]) for i, v in zip(scores.query, scores.class_id, strict=True)
    ]
    np.testing.assert_allclose(scores.ap_all, want, rtol=1e-9)


def test_order_of_candidates_and_queries_changes_nothing(rng):
    for _ in range(10):
        similarity, tie, ql, cl, k = random_case(rng, multi=True)
        scores = evaluate_attribute(similarity, tie, ql, cl, k)
        c, q = rng.permutation(len(cl)), rng.permutation(len(ql))
        assert_same(evaluate_attribute(similarity[:, c], tie[c], ql, cl[c], k), scores)
        moved = evaluate_attribute(similarity[q], tie, ql[q], cl, k)
        back = np.lexsort((moved.class_id, q[moved.query]))
        assert_same(Scores(q[moved.query][back], *(getattr(moved, f)[back] for f in FIELDS[1:])), scores)


@pytest.mark.parametrize("multi", [False, True])
def test_a_block_of_queries_scores_as_the_whole(rng, multi):
    for _ in range(20):
        similarity, tie, ql, cl, k = random_case(rng, multi)
        scores, step = evaluate_attribute(similarity, tie, ql, cl, k), int(rng.integers(1, len(ql) + 1))
        parts = []
        for start in range(0, len(ql), step):
            block = slice(start, start + step)
            part = evaluate_attribute(similarity[block], tie, ql[block], cl, k)
            parts.append(replace(part, query=part.query + start))
        assert_same(join(parts), scores)


# ---- the random ranking


def test_constant_embedding_scores_like_chance(rng):
    sizes = [3, 10, 47, 140]
    class_of = np.repeat(np.arange(4), sizes)  # candidates lie sorted by class, the worst file order
    labels = np.eye(4, dtype=bool)
    flat = torch.zeros(4, len(class_of))
    file_order = evaluate_attribute(flat, torch.arange(200), labels, labels[class_of]).ap_all
    want = expected_random_ap(sizes, 200)
    assert file_order[0] == 1  # what broken ties would report
    aps = []
    for _ in range(300):
        tie = tie_keys([f"{rng.integers(2**40)}/{v}/{c}.jpg" for c, v in enumerate(class_of)])
        aps.append(evaluate_attribute(flat, tie, labels, labels[class_of]).ap_all)
    error = np.std(aps, axis=0) / np.sqrt(len(aps))
    assert np.all(np.abs(np.mean(aps, axis=0) - want) < 6 * error)


def test_expected_random_ap_by_exhaustion():
    for C in range(1, 9):
        assert expected_random_ap(0, C) == 0
        for R in range(1, C + 1):
            aps = [sum(Fraction(j, r) for j, r in enumerate(c, 1)) / R for c in combinations(range(1, C + 1), R)]
            assert float(expected_random_ap(R, C)) == pytest.approx(float(sum(aps) / len(aps)), rel=1e-14)
    assert expected_random_ap([[1, 2], [0, 3]], 3).shape == (2, 2)
    for R, C in [(-1, 3), (4, 3), (0, 0)]:
        with pytest.raises(ValueError, match="R <= C"):
            expected_random_ap(R, C)


@pytest.mark.parametrize(("R", "C"), [(1, 900), (37, 500), (300, 400)])
def test_expected_random_ap_by_simulation(rng, R, C):
    similarity = torch.from_numpy(rng.random((4000, C), dtype=np.float32))
    ap = evaluate_attribute(similarity, torch.arange(C), np.ones((4000, 1)), np.arange(C)[:, None] < R)
    assert abs(ap.ap_all.mean() - expected_random_ap(R, C)) < 6 * ap.ap_all.std() / np.sqrt(4000)


# ---- summarise


def constant_scores(count, ap, hits=0.0, minimum=0.0, recall=0.0):
    whole = np.arange(count)
    return Scores(whole, whole, whole, *(np.full(count, value) for value in (ap, hits, minimum, recall)))


def test_summarise_literal():
    summary = summarise({"sleeve": constant_scores(3, 0.5, 0.8, 0.2, 0.1), "neck": constant_scores(1, 0.9, 0.4, 0, 1)})
    assert list(summary) == ["map_all", "map_100_hits", "map_100_min", "recall_100", "queries"]
    assert summary["queries"] == {"sleeve": 3, "neck": 1}
    for key, overall, mean, sleeve, neck in [
        ("map_all", 0.6, 0.7, 0.5, 0.9),
        ("map_100_hits", 0.7, 0.6, 0.8, 0.4),
        ("map_100_min", 0.15, 0.1, 0.2, 0),
        ("recall_100", 0.325, 0.55, 0.1, 1),
    ]:
        means = summary[key]
        assert (means["overall_by_query"], means["mean_over_attributes"]) == pytest.approx((overall, mean))
        assert means["attributes"] == pytest.approx({"sleeve": sleeve, "neck": neck})
        assert type(means["overall_by_query"]) is type(means["attributes"]["neck"]) is float


def test_summarise_refuses_an_attribute_without_queries():
    with pytest.raises(ValueError, match="neck"):
        summarise({"sleeve": constant_scores(3, 0.5), "neck": constant_scores(0, 0.5)})
    with pytest.raises(ValueError, match="any attribute"):
        summarise({})


# ---- against the released splits and the poster


def rows(data_set, role):
    """(n, 3) int: image, attribute, class."""
    return np.loadtxt(SHARED / "splits" / data_set / f"{role}_test.txt", dtype=int)


@needs_splits
@pytest.mark.parametrize(("data_set", "tolerance", "suspect"), [("fashionai", 0.01, ()), ("darn", 0.12, ("ASEN++",))])
def test_pooled_overall_is_the_published_overall(data_set, tolerance, suspect):
    with (SHARED / "design" / "published.csv").open() as lines:
        table = [r for r in csv.DictReader(lines) if r["dataset"] == data_set and r["metric"] == "MAP@all"]
    counts = np.bincount(rows(data_set, "query")[:, 1])
    systems = sorted({r["system"] for r in table} - set(suspect))
    assert len(systems) == 7 - len(suspect)
    for system in systems:
        *attributes, overall = [r for r in table if r["system"] == system]  # in the order of the attribute numbers
        assert overall["attribute"] == "overall"
        summary = summarise(
            {
                r["attribute"]: constant_scores(n, float(r["percent"]) / 100)
                for r, n in zip(attributes, counts, strict=True)
            }
        )
        assert 100 * summary["map_all"]["overall_by_query"] == pytest.approx(float(overall["percent"]), abs=tolerance)


@needs_splits
@pytest.mark.parametrize(
    ("data_set", "overall", "recall", "attributes"),
    [
        ("fashionai", 15.47, 5.50, [16.86, 12.23, 13.05, 17.11, 21.98, 21.21, 10.85, 20.73]),
        ("darn", 31.00, 5.24, [5.12, 23.17, 10.21, 29.64, 43.07, 38.54, 14.90, 61.88, 54.36]),
        ("deepfashion", 3.21, 2.27, [6.52, 2.56, 3.05, 2.36, 1.75]),
    ],
)
def test_random_ranking_of_the_released_rows(rng, data_set, overall, recall, attributes):
    queries, candidates = rows(data_set, "query"), rows(data_set, "candidate")
    scores, expected, share = {}, [], []
    for a in range(len(attributes)):
        q, c = queries[queries[:, 1] == a, 2], candidates[candidates[:, 1] == a, 2]
        one_hot = np.eye(max(q.max(), c.max()) + 1, dtype=bool)
        similarity = torch.from_numpy(rng.random((len(q), len(c))))
        scores[str(a)] = evaluate_attribute(similarity, torch.arange(len(c)), one_hot[q], one_hot[c])
        expected.append(expected_random_ap(scores[str(a)].relevant, len(c)))
        share.append(scores[str(a)].relevant / len(c))
    summary, ap = summarise(scores), np.concatenate([s.ap_all for s in scores.values()])
    assert [100 * s.mean() for s in share] == pytest.approx(attributes, abs=0.006)  # the stated figures are mean R / C
    assert 100 * np.concatenate(share).mean() == pytest.approx(overall, abs=0.006)
    chance = np.concatenate(expected)
    assert 0 < 100 * summary["map_all"]["overall_by_query"] - overall < 0.5  # and true chance lies slightly above
    assert abs(ap.mean() - chance.mean()) < 6 * np.std(ap - chance) / np.sqrt(len(ap))
    found = np.concatenate([s.recall_100 for s in scores.values()])
    assert abs(100 * found.mean() - recall) < 0.01 + 600 * found.std() / np.sqrt(len(found))


def deepfashion_labels():
    """(27625, 1000) bool and (1000,) the attribute of each global class id."""
    hot, attribute = np.zeros((27625, 1000), dtype=bool), np.zeros(1000, dtype=int)
    for line in (SHARED / "splits" / "deepfashion" / "label_test.txt").read_text().splitlines():
        image, *pairs = map(int, line.split())
        hot[image, pairs[1::2]] = True
        attribute[pairs[1::2]] = np.array(pairs[::2]) - 1
    return hot, attribute


@needs_splits
def test_deepfashion_as_image_class_pairs(rng):
    hot, attribute = deepfashion_labels()
    queries, candidates = rows("deepfashion", "query")[:, 0], rows("deepfashion", "candidate")[:, 0]
    scores, share, recall = {}, [], []
    for a in range(5):
        q, c = hot[queries][:, attribute == a], hot[candidates][:, attribute == a]
        c = c[c.any(axis=1)]
        one_shuffle = torch.from_numpy(rng.permutation(len(c))).expand(len(q), -1)
        s = scores[str(a)] = evaluate_attribute(one_shuffle, torch.arange(len(c)), q, c)
        share.append(s.relevant / len(c))
        recall.append(100 / len(c) * (s.relevant > 0))
    assert list(summarise(scores)["queries"].values()) == [3725, 5344, 3728, 3435, 2991]
    assert sum(np.sum(s.relevant == 0) for s in scores.values()) == 2
    assert [100 * s.mean() for s in share] == pytest.approx([11.44, 4.31, 4.17, 4.01, 2.47], abs=0.006)
    assert 100 * np.concatenate(share).mean() == pytest.approx(5.32, abs=0.006)
    assert 100 * np.concatenate(recall).mean() == pytest.approx(1.01, abs=0.006)
    assert 100 * summarise(scores)["map_all"]["overall_by_query"] == pytest.approx(5.4, abs=0.5)


# ---- intervals


def clusters(rng, count=60):
    """Values with true mean 0 in clusters of 1 to 4 equal copies, which a bootstrap over pairs would trust too much."""
    groups = np.repeat(rng.permutation(count) * 7, rng.integers(1, 5, size=count))
    return rng.normal(size=7 * count)[groups], groups


def test_bootstrap_covers_the_true_mean(rng):
    covered = naive = 0
    for trial in range(400):
        values, groups = clusters(rng)
        low, high = bootstrap(values, groups, repeats=200, seed=trial)
        covered += low <= 0 <= high
        low, high = bootstrap(values, np.arange(len(values)), repeats=200, seed=trial)
        naive += low <= 0 <= high
    assert 0.87 < covered / 400 < 0.985
    assert naive < covered - 30  # groups matter


def test_bootstrap_is_seeded_and_ignores_names_of_groups(rng):
    values, groups = clusters(rng)
    assert bootstrap(values, groups, 50, 3) == bootstrap(values, groups, 50, 3) != bootstrap(values, groups, 50, 4)
    assert bootstrap(values, groups, 50, 3) == bootstrap(values, groups + 1000, 50, 3)
    assert bootstrap(np.full(9, 0.25), np.array([0, 0, 0, 0, 0, 1, 2, 3, 3]), 50, 0) == (0.25, 0.25)
    with pytest.raises(ValueError, match="one group a value"):
        bootstrap(values, groups[1:], 50, 0)


def test_paired_bootstrap_of_equal_variants(rng):
    values, groups = clusters(rng)
    assert paired_bootstrap(values, values, groups, 100, 0) == (0, 0, 0, 1)
    p = []
    for trial in range(300):  # equally good, not identical
        (a, groups), noise = clusters(rng), rng.normal(size=2 * 7 * 60).reshape(2, -1)
        p.append(paired_bootstrap(a + noise[0][groups], a + noise[1][groups], groups, 200, trial)[3])
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert 0.3 < np.median(p) < 0.7


def test_paired_bootstrap_sees_a_small_steady_gain(rng):
    common, groups = clusters(rng)
    gain = 0.1 + 0.05 * rng.normal(size=7 * 60)[groups]  # far inside the spread of `common`
    difference, low, high, p = paired_bootstrap(common + gain, common, groups, 500, 0)
    assert difference == pytest.approx(gain.mean())
    assert 0 < low < difference < high < 0.2
    assert p == 1 / 501
    swapped = paired_bootstrap(common, common + gain, groups, 500, 0)
    assert swapped == pytest.approx((-difference, -high, -low, p))
    with pytest.raises(ValueError, match="broadcast"):
        paired_bootstrap(common, gain[1:], groups, 10, 0)
