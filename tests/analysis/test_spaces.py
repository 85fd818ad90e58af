"""Class spaces: cosines and the own-space advantage, against loops."""

import itertools

import numpy as np
import pytest
import torch

from embedded import labelled_rows, make_embeddings, make_split
from m3lib.analysis import spaces
from m3lib.retrieval.embeddings import Embeddings
from tiny import TAXONOMY, unit_rows


def average_precision(similarity: np.ndarray, relevant: np.ndarray) -> float:
    hits = relevant[np.argsort(-similarity)].nonzero()[0]
    return float(np.mean([(j + 1) / (rank + 1) for j, rank in enumerate(hits)])) if len(hits) else 0.0


def test_space_table_against_a_loop():
    prepared, embeddings = make_split(120, seed=1), make_embeddings(120)
    table = spaces.space_table(prepared, "test", embeddings)
    phi, f = embeddings.classes.double().numpy(), embeddings.attribute.double().numpy()
    for n, name in enumerate(TAXONOMY.names):
        classes = range(TAXONOMY.num_classes)[TAXONOMY.classes_of(n)]
        queries, candidates = (labelled_rows(prepared, "test", role, n) for role in ("query", "candidate"))
        own, siblings, attribute = [], [], []
        for q, m in itertools.product(queries, classes):
            if prepared.labels[q, m]:
                relevant = prepared.labels[candidates, m]
                by_space = {k: average_precision(phi[candidates, k] @ phi[q, k], relevant) for k in classes}
                own.append(by_space.pop(m))
                siblings.extend(by_space.values())
                attribute.append(average_precision(f[candidates, n] @ f[q, n], relevant))
        pairs = itertools.combinations(classes, 2)
        cosine = np.mean([(phi[candidates, a] * phi[candidates, b]).sum(axis=1).mean() for a, b in pairs])
        expected = [cosine, *(100 * np.mean(values) for values in (own, siblings))]
        expected += [expected[1] - expected[2], 100 * np.mean(attribute)]
        assert table.loc[name].tolist() == pytest.approx(expected, abs=1e-3)


def test_one_vector_for_all_classes_has_cosine_1_and_no_advantage():
    prepared, embeddings = make_split(120), make_embeddings(120)
    repeated = embeddings.classes[:, :1].expand_as(embeddings.classes)
    table = spaces.space_table(prepared, "test", Embeddings(embeddings.rows, None, embeddings.posterior, repeated))
    assert table["cosine"].tolist() == pytest.approx([1] * len(table), abs=1e-3)
    assert table["advantage"].tolist() == pytest.approx([0] * len(table))
    assert table["attribute"].isna().all()


def test_a_space_that_orders_its_class_has_an_advantage():
    """In the space of class m, images that carry m lie at one point and the others elsewhere."""
    prepared, embeddings = make_split(120), make_embeddings(120)
    sign = torch.from_numpy(2.0 * prepared.labels - 1)[:, :, None]
    classes = torch.cat([sign, 0.5 * embeddings.classes], dim=2)
    classes = torch.nn.functional.normalize(classes.float(), dim=2).half()
    table = spaces.space_table(prepared, "test", Embeddings(embeddings.rows, classes=classes))
    assert table["own"].tolist() == pytest.approx([100] * len(table))
    assert (table["advantage"] > 20).all()


def test_only_images_with_embeddings_take_part():
    prepared, embeddings = make_split(120), make_embeddings(120)
    some = np.sort(np.random.default_rng(0).permutation(120)[:80])
    table = spaces.space_table(prepared, "test", embeddings.at(torch.from_numpy(some)))
    prepared.manifest.loc[np.setdiff1d(np.arange(120), some), "split"] = "train"
    expected = spaces.space_table(prepared, "test", embeddings)
    np.testing.assert_allclose(table, expected)


def test_mean_cosine_against_a_loop():
    vectors = unit_rows(3, 5, 4, seed=2)
    pairs = list(itertools.permutations(range(5), 2))
    expected = np.mean([float(vectors[i, a] @ vectors[i, b]) for i in range(3) for a, b in pairs])
    assert spaces.mean_cosine(vectors) == pytest.approx(expected, abs=1e-6)
    assert np.isnan(spaces.mean_cosine(vectors[:, :1]))
