"""The protocol: which candidates are ranked for which queries, which are relevant, and that blocks change no bit."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from embedded import D, labelled_rows, make_embeddings, make_split
from m3lib.compatibility import SCORES
from m3lib.errors import InputError
from m3lib.retrieval import metrics, ranking, scores
from m3lib.retrieval.embeddings import Embeddings, broadcast_over_attributes
from tiny import TAXONOMY, make_prepared, random_labels

N = TAXONOMY.num_attributes
METRICS = ("query", "class_id", "relevant", "ap_all", "ap_100_hits", "ap_100_min", "recall_100")


@pytest.mark.parametrize("score", SCORES)
def test_rank_orders_the_labelled_candidates_by_falling_similarity(score):
    prepared = make_split()
    embeddings = make_embeddings(len(prepared.manifest))
    for n in range(N):
        ranked = ranking.rank(prepared, "test", n, score, embeddings, seed=0)
        queries, candidates = (labelled_rows(prepared, "test", role, n) for role in ("query", "candidate"))
        names = prepared.manifest["image"].to_numpy()[candidates].tolist()
        candidates = [candidates[i] for i in metrics.tie_keys(names).argsort()]
        assert (ranked.query_rows.tolist(), ranked.candidate_rows.tolist()) == (queries, candidates)
        of_attribute = embeddings.of_attribute(n, TAXONOMY)
        values = scores.similarity(score, of_attribute.take(queries), of_attribute.take(candidates))
        for line, order in zip(values, ranked.order(slice(None)), strict=True):
            assert sorted(order.tolist()) == list(range(len(candidates)))
            assert (line[order].diff() <= 0).all()


@pytest.mark.parametrize("score", ["attribute", "random"])
def test_images_that_are_both_ask_all_others(score):
    """As asking alone, with every other image but its near-identical ones as candidates."""
    prepared, embeddings = make_split(40, seed=2), make_embeddings(40)
    frame = prepared.manifest.assign(key=[f"group {i // 2}" for i in range(40)])  # two images each
    asks_all = replace(prepared, manifest=frame.assign(role=np.where(frame["split"] == "train", "", "both")))
    found = ranking.evaluate(asks_all, "test", score, embeddings)
    for n, of_attribute in enumerate(found.values()):
        rows = sorted(labelled_rows(asks_all, "test", "both", n))
        expected = []
        for row in rows:
            others = [i for i in rows if i // 2 != row // 2]
            roles = ["query" if i == row else "candidate" if i in others else "" for i in range(40)]
            alone = replace(prepared, manifest=frame.assign(role=roles))
            alone.manifest["split"] = ["test" if role else "train" for role in roles]
            values = list(ranking.evaluate(alone, "test", score, embeddings).values())[n]
            expected += [(values.relevant[p], values.ap_all[p]) for p in range(len(values.query))]
        assert of_attribute.relevant.tolist() == [relevant for relevant, _ in expected]
        if score != "random":  # whose draws depend on the number of the query
            assert of_attribute.ap_all.tolist() == pytest.approx([ap for _, ap in expected])


def test_equal_similarities_are_ranked_by_the_hash_of_the_name():
    prepared = make_split()
    flat = broadcast_over_attributes(np.arange(60), torch.eye(D)[:1].expand(60, -1), TAXONOMY)
    ranked = ranking.rank(prepared, "test", 0, "attribute", flat, seed=0)
    for order in ranked.order(slice(None)).tolist():
        names = prepared.manifest["image"].to_numpy()[ranked.candidate_rows[order]].tolist()
        assert (metrics.tie_keys(names).diff() > 0).all()


def test_the_random_ranking_depends_on_the_seed_and_the_query():
    prepared = make_split()

    def order(n: int, seed: int) -> torch.Tensor:
        return ranking.rank(prepared, "test", n, "random", None, seed).order(slice(None))

    assert torch.equal(order(0, 1), order(0, 1))
    assert len(order(0, 1).unique(dim=0)) == len(order(0, 1))  # each query draws for itself
    assert not torch.equal(order(0, 1), order(0, 2))
    firsts = np.concatenate([order(0, seed)[:, 0] for seed in range(300)])
    counts = np.bincount(firsts, minlength=len(order(0, 1)[0]))
    assert counts.min() > 0.5 * counts.mean()


@pytest.mark.parametrize("score", [*SCORES, "random"])
@pytest.mark.parametrize("relevance", ["pair", "any"])
def test_neither_blocks_nor_the_order_of_files_change_a_bit(score, relevance, monkeypatch):
    monkeypatch.setattr(scores, "VECTOR_BLOCK", 2 * D)
    monkeypatch.setattr(scores, "CANDIDATE_BLOCK", 20)
    prepared, embeddings = make_split(400), make_embeddings(400)
    expected = ranking.evaluate(prepared, "test", score, embeddings, relevance=relevance)
    monkeypatch.setattr(ranking, "BLOCK", 1)
    in_blocks = ranking.evaluate(prepared, "test", score, embeddings, 0, relevance)
    for name, metric in product(TAXONOMY.names, METRICS):
        assert len(expected[name].query) > scores.MIN_ROWS
        np.testing.assert_array_equal(getattr(in_blocks[name], metric), getattr(expected[name], metric))
    if score == "random":  # its similarities are drawn in the order of the rows
        return
    order = np.random.default_rng().permutation(400)
    moved = replace(prepared, manifest=prepared.manifest.iloc[order].reset_index(drop=True))
    shuffled = replace(embeddings.at(torch.from_numpy(order)), rows=torch.arange(400))
    results = ranking.evaluate(moved, "test", score, shuffled, relevance=relevance)
    for n, name in enumerate(TAXONOMY.names):
        assert by_image(moved, results[name], n) == by_image(prepared, expected[name], n)


def by_image(prepared, results, attribute):
    """The metrics of every pair, with the name of its query image, in the order of the names."""
    rows = np.array(labelled_rows(prepared, "test", "query", attribute))[results.query]
    values = (getattr(results, metric) for metric in METRICS[2:])
    return sorted(zip(prepared.manifest["image"][rows], *values, strict=True))


def test_by_relevance_any_a_candidate_is_relevant_if_it_shares_any_class():
    prepared, embeddings = make_split(200), make_embeddings(200)
    results = ranking.evaluate(prepared, "test", "attribute", embeddings, relevance="any")
    for n, name in enumerate(TAXONOMY.names):
        labels = prepared.labels[:, TAXONOMY.classes_of(n)]
        ranked = ranking.rank(prepared, "test", n, "attribute", embeddings, 0)
        for i, order in enumerate(ranked.order(slice(None)).numpy()):
            relevant = [(labels[ranked.query_rows[i]] & labels[c]).any() for c in ranked.candidate_rows[order]]
            ranks = np.flatnonzero(relevant) + 1
            ap = sum(j / rank for j, rank in enumerate(ranks, start=1)) / max(1, len(ranks))
            assert results[name].ap_all[i] == pytest.approx(ap)


def test_embeddings_that_hold_nan_are_refused():
    prepared, embeddings = make_split(), make_embeddings(60)
    embeddings.attribute[labelled_rows(prepared, "test", "query", 0)[0]] = torch.nan
    with pytest.raises(InputError, match=r"colour, test, score attribute: .*NaN.*"):
        ranking.evaluate(prepared, "test", "attribute", embeddings)


def test_evaluate_has_metrics_of_every_labelled_query_class_pair():
    prepared = make_split()
    results = ranking.evaluate(prepared, "test", "weighted", make_embeddings(60))
    assert list(results) == TAXONOMY.names
    for n, name in enumerate(TAXONOMY.names):
        classes = TAXONOMY.classes_of(n)
        pairs = [
            (i, m - classes.start)
            for i, row in enumerate(labelled_rows(prepared, "test", "query", n))
            for m in prepared.manifest["labels"][row]
            if classes.start <= m < classes.stop
        ]
        assert list(zip(results[name].query.tolist(), results[name].class_id.tolist(), strict=True)) == pairs


def test_class_probabilities_equal_to_the_labels_rank_perfectly():
    labels = random_labels("single", 60, np.random.default_rng(0))
    prepared = make_prepared(labels, [("test", "query" if i % 3 else "candidate") for i in range(60)])
    exact = Embeddings(torch.arange(60), posterior=torch.from_numpy(labels).half())
    for results in ranking.evaluate(prepared, "test", "posterior", exact).values():
        assert (results.ap_all[results.relevant > 0] == 1).all()


PARTS = [("test", "query"), ("test", "candidate")]


@pytest.mark.parametrize("relevance", ["pair", "any"])
@pytest.mark.parametrize("score", [*SCORES, "random"])
@pytest.mark.parametrize(
    "parts", [[], PARTS[:1], PARTS[1:], PARTS], ids=["no image", "no candidate", "no query", "one of each"]
)
def test_a_split_with_hardly_an_image_is_measured_as_far_as_it_goes(parts, score, relevance):
    """Two images of one class and one part each, and a training image."""
    labels = np.zeros((3, TAXONOMY.num_classes), bool)
    labels[:, 0] = True
    prepared = make_prepared(labels, [("train", ""), *parts, *[("train", "")] * (2 - len(parts))])
    results = ranking.evaluate(prepared, "test", score, make_embeddings(3), relevance=relevance)
    assert [len(of_attribute.query) for of_attribute in results.values()] == [len(parts) and parts[0] == PARTS[0], 0, 0]
    summary = metrics.summarise(results)["map_all"]
    expected = 1.0 if len(parts) == 2 else np.nan
    np.testing.assert_equal([summary["overall_by_query"], summary["attributes"]["colour"]], [expected] * 2)
