"""Metrics and embeddings class by class, against loops."""

from dataclasses import replace

import numpy as np
import pytest

from embedded import labelled_rows, make_embeddings, make_split
from m3lib.analysis import classes
from m3lib.retrieval import metrics, ranking
from tiny import TAXONOMY


def test_class_table_against_a_loop():
    prepared = make_split(90, seed=3)
    results = ranking.evaluate(prepared, "test", "attribute", make_embeddings(90))
    table = classes.class_table(prepared, "test", results).set_index(["attribute", "class_"])
    train, expected = prepared.labels[prepared.rows("train")], {}
    for n, (name, of_attribute) in enumerate(results.items()):
        candidates = labelled_rows(prepared, "test", "candidate", n)
        for m in range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]:
            of_class = of_attribute.class_id == m - TAXONOMY.offsets[n]
            if of_class.any():
                relevant = int(prepared.labels[candidates, m].sum())
                floor = 100 * float(metrics.expected_random_ap(relevant, len(candidates)))
                ap = 100 * of_attribute.ap_all[of_class].mean()
                expected[name, TAXONOMY.class_name(m)] = (train[:, m].sum(), ap, floor)
    assert set(table.index) == set(expected)
    for key, values in expected.items():
        assert table.loc[key, ["images", "ap", "floor"]].tolist() == pytest.approx(values)


@pytest.mark.parametrize("source", ["classes", "attribute", "posterior"])
def test_class_points_against_a_loop(source):
    prepared, every_kind = make_split(80), make_embeddings(80)
    absent = {"classes": [], "attribute": ["classes"], "posterior": ["classes", "attribute"]}[source]
    embeddings = replace(every_kind, **dict.fromkeys(absent))
    of_attribute = TAXONOMY.classes_of(1)
    vectors, names = classes.class_points(prepared, embeddings, 1, 1000, np.random.default_rng(0))
    expected = []
    for row in labelled_rows(prepared, "test", "query", 1) + labelled_rows(prepared, "test", "candidate", 1):
        for m in prepared.manifest["labels"][row]:
            if of_attribute.start <= m < of_attribute.stop:
                vector = {"classes": every_kind.classes[row, m], "attribute": every_kind.attribute[row, 1]}
                expected.append(
                    (TAXONOMY.class_name(m), *vector.get(source, every_kind.posterior[row, of_attribute]).tolist())
                )
    assert vectors.dtype == np.float32
    actual = [(str(name), *vector.tolist()) for name, vector in zip(names, vectors, strict=True)]
    assert sorted(actual) == sorted(expected)


def test_class_points_draws_no_more_than_the_limit_and_by_the_seed():
    prepared, embeddings = make_split(80), make_embeddings(80)

    def points(seed: int, limit: int = 7) -> np.ndarray:
        return classes.class_points(prepared, embeddings, 1, limit, np.random.default_rng(seed))[0]

    assert len(points(0)) == 7
    assert np.array_equal(points(0), points(0))
    assert not np.array_equal(points(0), points(1))
    assert len(np.unique(points(0), axis=0)) == 7


def class_centres(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of three classes around three centres, sorted by class as in many tables."""
    labels = np.arange(count) * 3 // max(count, 1)
    return np.eye(3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(count, 3)), labels.astype(str)


def test_a_vote_depends_on_the_embeddings_and_not_on_the_order():
    vectors, labels = class_centres(classes.MIN_POINTS)
    assert classes.vote(vectors, labels, 0) == 1
    assert classes.vote(np.random.default_rng(1).permutation(vectors), labels, 0) < 0.6


@pytest.mark.parametrize("count", [0, 1, 2, 15, 30, classes.MIN_POINTS - 1])
def test_a_vote_in_which_most_points_would_vote_is_not_measured(count):
    assert np.isnan(classes.vote(*class_centres(count), 0))
