"""The protocol: who is ranked for whom, what is relevant, and what changes no bit of a metric."""

from dataclasses import replace

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


@pytest.mark.parametrize("score", SCORES)
def test_rank_orders_the_known_candidates_by_falling_similarity(score):
    prepared = make_split()
    embeddings = make_embeddings(len(prepared.manifest))
    for n in range(N):
        ranked = ranking.rank(prepared, "test", n, score, embeddings, seed=0)
        queries, candidates = (labelled_rows(prepared, "test", role, n) for role in ("query", "candidate"))
        names = prepared.manifest["image"].to_numpy()[candidates].tolist()
        candidates = [candidates[i] for i in metrics.tie_keys(names).argsort()]  # columns in no order of labels
        assert (ranked.query_rows.tolist(), ranked.candidate_rows.tolist()) == (queries, candidates)
        of_attribute = embeddings.of_attribute(n, TAXONOMY)
        values = scores.similarity(score, of_attribute.take(queries), of_attribute.take(candidates))
        for line, order in zip(values, ranked.order(slice(None)), strict=True):
            assert sorted(order.tolist()) == list(range(len(candidates)))
            assert (line[order].diff() <= 0).all()


def test_equal_similarities_fall_by_the_names_hash():
    prepared = make_split()
    flat = broadcast_over_attributes(np.arange(60), torch.eye(D)[:1].expand(60, -1), TAXONOMY)
    ranked = ranking.rank(prepared, "test", 0, "attribute", flat, seed=0)
    for order in ranked.order(slice(None)).tolist():
        names = prepared.manifest["image"].to_numpy()[ranked.candidate_rows[order]].tolist()
        assert (metrics.tie_keys(names).diff() > 0).all()


def test_the_random_ranking_is_the_seeds_and_the_attributes():
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
def test_neither_memory_nor_the_order_of_files_changes_a_bit(score, relevance, monkeypatch):
    monkeypatch.setattr(scores, "VECTOR_BLOCK", 2 * D)
    monkeypatch.setattr(scores, "CANDIDATE_BLOCK", 20)
    prepared, embeddings = make_split(400), make_embeddings(400)
    whole = ranking.evaluate(prepared, "test", score, embeddings, relevance=relevance)
    monkeypatch.setattr(ranking, "MEMORY", 1)
    assert len(ranking.rank(prepared, "test", 0, score, embeddings, 0).blocks()) > 1
    assert same_metrics(ranking.evaluate(prepared, "test", score, embeddings, 0, relevance), whole)
    if score != "random":  # which draws for the rows as they come
        order = np.random.default_rng().permutation(400)
        moved = replace(prepared, manifest=prepared.manifest.iloc[order].reset_index(drop=True))
        shuffled = replace(embeddings.at(torch.from_numpy(order)), rows=torch.arange(400))
        other = ranking.evaluate(moved, "test", score, shuffled, relevance=relevance)
        for name, of_attribute in whole.items():
            by_image = [
                sorted(zip(part.manifest["image"][queries].tolist(), *values, strict=True))
                for part, found in ((prepared, of_attribute), (moved, other[name]))
                for queries in [np.array(labelled_rows(part, "test", "query", TAXONOMY.names.index(name)))[found.query]]
                for values in [(found.ap_all, found.ap_100_min, found.recall_100)]
            ]
            assert by_image[0] == by_image[1]


def same_metrics(a: dict, b: dict) -> bool:
    return all(np.array_equal(vars(a[name])[key], vars(b[name])[key]) for name in a for key in vars(a[name]))


def test_a_candidate_is_right_if_any_class_is_shared():
    prepared, embeddings = make_split(200), make_embeddings(200)
    found = ranking.evaluate(prepared, "test", "attribute", embeddings, relevance="any")
    for n, name in enumerate(TAXONOMY.names):
        own = TAXONOMY.classes_of(n)
        queries, candidates = (labelled_rows(prepared, "test", role, n) for role in ("query", "candidate"))
        of_attribute = embeddings.of_attribute(n, TAXONOMY)
        similarity = scores.similarity("attribute", of_attribute.take(queries), of_attribute.take(candidates))
        for i, (row, values) in enumerate(zip(queries, similarity.tolist(), strict=True)):
            ranked = [candidates[j] for j in np.argsort(-np.array(values), kind="stable")]
            right = [bool((prepared.labels[row, own] & prepared.labels[c, own]).any()) for c in ranked]
            ranks = [rank for rank, hit in enumerate(right, start=1) if hit]
            ap = sum(j / rank for j, rank in enumerate(ranks, start=1)) / max(1, len(ranks))
            assert found[name].ap_all[i] == pytest.approx(ap)


def test_embeddings_that_are_not_numbers_are_told():
    prepared, embeddings = make_split(), make_embeddings(60)
    embeddings.attribute[labelled_rows(prepared, "test", "query", 0)[0]] = torch.nan
    with pytest.raises(InputError, match=r"colour, test, score attribute: .*NaN.*"):
        ranking.evaluate(prepared, "test", "attribute", embeddings)


def test_evaluate_scores_every_known_query_class_pair():
    prepared = make_split()
    results = ranking.evaluate(prepared, "test", "weighted", make_embeddings(60))
    assert list(results) == TAXONOMY.names
    for n, name in enumerate(TAXONOMY.names):
        own = TAXONOMY.classes_of(n)
        pairs = [
            (i, m - own.start)
            for i, row in enumerate(labelled_rows(prepared, "test", "query", n))
            for m in prepared.manifest["labels"][row]
            if own.start <= m < own.stop
        ]
        found = results[name]
        assert list(zip(found.query.tolist(), found.class_id.tolist(), strict=True)) == pairs


def test_embeddings_of_the_labels_themselves_rank_without_a_mistake():
    labels = random_labels("single", 60, np.random.default_rng(0))
    prepared = make_prepared(labels, [("test", "query" if i % 3 else "candidate") for i in range(60)])
    exact = Embeddings(torch.arange(60), None, torch.from_numpy(labels).half(), None)
    for found in ranking.evaluate(prepared, "test", "posterior", exact).values():
        assert (found.ap_all[found.relevant > 0] == 1).all()
