"""Separability of classes, against loops and scikit-learn; no label selects a vector."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier

from embedded import labelled_rows, make_embeddings, make_split
from m3lib.analysis import separation
from m3lib.retrieval.embeddings import Embeddings
from m3lib.retrieval.metrics import tie_keys
from tiny import TAXONOMY, make_prepared


def test_a_sample_has_known_labels_and_does_not_depend_on_the_order_of_files():
    prepared = make_split(200)
    rows = prepared.rows("test")
    sample = separation.labelled_rows(prepared, rows, 1)
    known = labelled_rows(prepared, "test", "query", 1) + labelled_rows(prepared, "test", "candidate", 1)
    assert sorted(sample) == sorted(known)
    assert separation.labelled_rows(prepared, rows[::-1], 1).tolist() == sample.tolist()
    names = prepared.manifest["image"][sample].tolist()
    assert names == sorted(names, key=lambda name: int(tie_keys([name])))


@pytest.mark.parametrize("absent", [[], ["attribute"], ["attribute", "posterior"], ["attribute", "classes"]])
def test_a_common_space_against_a_loop(absent):
    prepared, whole = make_split(80), make_embeddings(80)
    embeddings, rows = replace(whole, **dict.fromkeys(absent)), np.array([9, 3, 40])
    vectors = separation.common_space(prepared, embeddings, 1, rows)
    assert vectors.dtype == np.float32
    for row, vector in zip(rows, vectors, strict=True):
        p, phi = whole.posterior[row, 3:7].float(), whole.classes[row, 3:7].float()
        weighted = torch.cat([p, *(p[k] * phi[k] for k in range(4))])
        expected = {"": whole.attribute[row, 1], "attribute": weighted, "posterior": phi.flatten(), "classes": p}
        np.testing.assert_array_equal(vector, expected[absent[-1] if absent else ""].float())


def test_the_space_of_a_class_takes_every_image_whatever_its_labels():
    embeddings, rows = make_embeddings(np.arange(0, 60, 2)), np.array([8, 2, 30])
    vectors = separation.class_space(embeddings, 4, rows)
    np.testing.assert_array_equal(vectors, embeddings.classes[rows // 2, 4].float())


def test_the_most_frequent_class_is_that_of_most_training_images():
    prepared = make_split(300)
    counts = {m: sum(m in ids for ids in prepared.manifest["labels"][prepared.rows("train")]) for m in range(3, 7)}
    assert separation.most_frequent_class(prepared, 1) == max(counts, key=counts.get)


def test_the_precision_in_a_space_is_scikit_learns():
    prepared = make_split(300, seed=5)
    rows = separation.labelled_rows(prepared, prepared.rows("test"), 1)
    vectors = np.random.default_rng().normal(size=(len(rows), 5)).astype(np.float32)
    carries, precisions = prepared.labels[rows, 4], []
    for q in np.flatnonzero(carries):
        others = np.arange(len(rows)) != q
        precisions.append(average_precision_score(carries[others], vectors[others] @ vectors[q]))
    assert separation.space_ap(prepared, vectors, 4, rows) == pytest.approx(np.mean(precisions), rel=1e-5)
    few = np.flatnonzero(~carries).tolist() + np.flatnonzero(carries)[:1].tolist()
    assert np.isnan(separation.space_ap(prepared, vectors[few], 4, rows[few]))


def class_centres(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around three centres, sorted by class as in many tables, and their labels (count, 3) bool."""
    labels = np.eye(3, dtype=bool)[np.arange(count) * 3 // max(count, 1)]
    return labels + 0.1 * np.random.default_rng(0).normal(size=(count, 3)), labels


def test_a_vote_depends_on_the_embeddings_and_not_on_the_order():
    vectors, labels = class_centres(separation.MIN_POINTS)
    assert separation.vote(vectors, labels, 0) == 1
    assert separation.vote(np.random.default_rng(1).permutation(vectors), labels, 0) < 0.6


def test_a_vote_on_one_class_per_image_is_scikit_learns():
    vectors, labels = class_centres(150)
    vectors = vectors + np.random.default_rng().normal(size=vectors.shape)
    voters, others, of_voters, of_others = train_test_split(vectors, labels.argmax(1), test_size=0.5, random_state=4)
    expected = KNeighborsClassifier(separation.NEIGHBOURS, metric="cosine").fit(voters, of_voters)
    assert separation.vote(vectors, labels, 4) == expected.score(others, of_others)


def test_a_vote_is_right_if_the_image_carries_the_class():
    vectors, labels = class_centres(separation.MIN_POINTS)
    labels = np.hstack([labels, np.random.default_rng().random((len(labels), 4)) < 0.2])  # further classes, at random
    assert separation.vote(vectors, labels, 0) == 1


@pytest.mark.parametrize("count", [0, 1, 2, 15, 30, separation.MIN_POINTS - 1])
def test_a_vote_in_which_most_points_would_vote_is_not_measured(count):
    assert np.isnan(separation.vote(*class_centres(count), 0))


def test_an_untrained_network_has_no_advantage_from_masks_of_its_classes():
    """A space per class whose vectors carry no label: neither number may find the class."""
    rng = np.random.default_rng(0)
    labels = np.eye(TAXONOMY.num_classes, dtype=bool)[rng.integers(0, 3, 600)]
    prepared = make_prepared(labels, [("test", ("query", "candidate")[i % 2]) for i in range(600)])
    masks = np.maximum(0.9 + 0.7 * rng.normal(size=(TAXONOMY.num_classes, 16)), 0)  # as of M3-Net_a
    phi = torch.from_numpy(rng.normal(size=(600, 1, 16)) * masks).float()
    embeddings = Embeddings(torch.arange(600), classes=torch.nn.functional.normalize(phi, dim=2).half())
    rows = separation.labelled_rows(prepared, np.arange(600), 0)
    vectors = separation.common_space(prepared, embeddings, 0, rows)
    assert separation.vote(vectors, labels[rows, :3], 0) < 0.45
    assert separation.space_ap(prepared, separation.class_space(embeddings, 1, rows), 1, rows) < 0.4


def test_an_image_has_the_colour_of_its_most_frequent_class():
    rng = np.random.default_rng()
    labels, names = rng.random((50, 4)) < 0.5, np.array(["a", "b", "c", "d"])
    labels[~labels.any(axis=1), 0] = True
    counts = labels.sum(axis=0)
    for name, row in zip(separation.display_classes(names, labels), labels, strict=True):
        assert counts[names == name] == max(counts[row])
        assert row[names == name]
