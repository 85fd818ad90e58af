"""Rank correlations within classes, against SciPy and for embeddings whose order is known."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from m3lib.analysis import factors
from m3lib.data.manifest import Prepared
from m3lib.retrieval.embeddings import Embeddings
from m3lib.taxonomy import Attribute, Taxonomy
from tiny import make_prepared

TAXONOMY = Taxonomy((Attribute("texture", ("striped", "dotted")), Attribute("style", ("plain", "loud"))))
FACTOR = np.random.default_rng().random(60)


def make_case(embedding: np.ndarray) -> tuple[Prepared, Embeddings]:
    """60 test images, 12 of them queries, half of each class; embedding: (60, D)."""
    labels = np.zeros((60, 4), bool)
    labels[np.arange(60), np.arange(60) % 2] = labels[:, 2] = True
    prepared = make_prepared(labels, [("test", "query" if i < 12 else "candidate") for i in range(60)], None, TAXONOMY)
    prepared.manifest["factor_pitch"] = FACTOR
    attribute = torch.from_numpy(embedding)[:, None].expand(-1, 2, -1)
    return prepared, Embeddings(torch.arange(60), attribute.float(), None, None)


def on_a_circle(angle: np.ndarray) -> np.ndarray:
    """(I, 2) unit vectors, whose cosine falls with the angle between them."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


@pytest.mark.parametrize("ties", [False, True])
def test_rank_correlation_is_scipys(ties):
    rng = np.random.default_rng()
    a, b = rng.random((5, 30)), rng.random((5, 30))
    if ties:
        a, b = a.round(1), b.round(1)
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert factors.rank_correlation(a, b) == pytest.approx(expected)


def test_the_correlation_of_a_constant_row_is_0():
    assert factors.rank_correlation(np.ones((1, 4)), np.arange(4.0)[None]).tolist() == [0.0]


@pytest.mark.parametrize(("factor", "expected"), [("hue", [-0.1, -0.45]), ("pitch", [-0.9, -0.45])])
def test_closeness_is_cyclic_for_hue_only(factor, expected):
    assert factors.closeness(np.array([0.95]), np.array([0.05, 0.5]), factor)[0] == pytest.approx(expected)


def test_embeddings_in_the_order_of_the_factor_correlate_by_1():
    prepared, embeddings = make_case(on_a_circle(FACTOR))
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {"texture: pitch": pytest.approx(1)}
    prepared, embeddings = make_case(on_a_circle(np.random.default_rng(0).random(60)))
    assert abs(factors.within_classes(prepared, "test", "attribute", embeddings)["texture: pitch"]) < 0.3


def test_candidates_of_other_classes_do_not_count():
    """Embeddings that follow the factor inside each class, and put the two classes on the wrong sides."""
    away = np.where(np.arange(60) % 2, 0.0, 0.3)
    prepared, embeddings = make_case(on_a_circle(FACTOR + away))
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {"texture: pitch": pytest.approx(1)}


def test_a_data_set_without_hidden_factors_has_no_correlations():
    prepared, embeddings = make_case(on_a_circle(FACTOR))
    del prepared.manifest["factor_pitch"]
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {}
