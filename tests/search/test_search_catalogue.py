"""The ranking by classes against a sort in float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from catalogues import catalogue_of, random_embeddings
from m3lib.retrieval import metrics
from m3lib.search import catalogue as catalogue_module
from tiny import TAXONOMY


def naive_by_classes(embeddings, query, classes, names, k):
    """(item, score) of the best, in float64, by class-specific embeddings, by those of the attribute, or by neither."""
    p, phi, f, scores = embeddings.posterior.double().numpy(), embeddings.classes, embeddings.attribute, []
    for j in range(len(p)):
        terms = []
        for m in classes:
            n, cos = TAXONOMY.attribute_of_class[m], 1.0
            if phi is not None:
                cos = math.fsum(query.classes[0, m].double().numpy() * phi[j, m].double().numpy())
            elif f is not None:
                cos = math.fsum(query.attribute[0, n].double().numpy() * f[j, n].double().numpy())
            terms.append(p[j, m] * (1 + cos) / 2)
        scores.append(math.fsum(terms) / len(terms))
    ties = metrics.tie_keys(names).tolist()
    return [(j, scores[j]) for j in sorted(range(len(p)), key=lambda j: (-scores[j], ties[j]))[:k]]


@pytest.mark.parametrize("without", [[], ["classes"], ["classes", "attribute"]], ids=len)
@pytest.mark.parametrize("classes", [[1], [2, 1, 0]])
def test_ranking_by_classes_against_a_loop_with_ties(without, classes):
    """Each image occurs three times under different names, and many probabilities are equal."""
    rows = np.random.default_rng(0).permutation(np.arange(2100) % 700)
    embeddings = replace(random_embeddings(700).at(rows), rows=torch.arange(2100))
    embeddings = replace(embeddings, posterior=(embeddings.posterior * 8).round() / 8)
    embeddings = replace(embeddings, **dict.fromkeys(without))
    catalogue, start = catalogue_of(embeddings), TAXONOMY.classes_of(1).start
    query = embeddings.take(np.array([5]))
    expected = naive_by_classes(embeddings, query, [start + m for m in classes], catalogue.names.to_pylist(), 2100)
    for k in (1, 50, 2100):
        items, scores = catalogue.rank_by_classes(query.of_attribute(1, TAXONOMY), 1, classes, k)
        assert items.tolist() == [j for j, _ in expected[:k]]
        np.testing.assert_allclose(scores, [score for _, score in expected[:k]], rtol=1e-12)


def test_ranking_by_classes_scores_few_images(monkeypatch):
    embeddings, agreement, scored = random_embeddings(6000), catalogue_module.class_agreement, []
    monkeypatch.setattr(
        catalogue_module, "class_agreement", lambda p, *phi: scored.append(len(p)) or agreement(p, *phi)
    )
    query = embeddings.take(np.array([5])).of_attribute(1, TAXONOMY)
    catalogue_of(embeddings).rank_by_classes(query, 1, [0], 5)
    assert sum(scored) < 3000
