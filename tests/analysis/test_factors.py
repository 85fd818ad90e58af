"""Likeness inside a class, against SciPy and against rankings that are known."""

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
    """60 test pictures, 12 of them queries, half of each class; embedding: (60, D)."""
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


def test_a_constant_row_correlates_with_nothing():
    assert factors.rank_correlation(np.ones((1, 4)), np.arange(4.0)[None]).tolist() == [0.0]


def test_hue_goes_round():
    assert factors.closeness(np.array([0.95]), np.array([0.05, 0.5]), "hue") == pytest.approx(np.array([[-0.1, -0.45]]))
    assert factors.closeness(np.array([0.95]), np.array([0.05, 0.5]), "pitch") == pytest.approx(
        np.array([[-0.9, -0.45]])
    )


def test_embeddings_that_follow_the_factor():
    prepared, embeddings = make_case(on_a_circle(FACTOR))
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {"texture: pitch": pytest.approx(1)}
    prepared, embeddings = make_case(on_a_circle(np.random.default_rng(0).random(60)))
    assert abs(factors.within_classes(prepared, "test", "attribute", embeddings)["texture: pitch"]) < 0.3


def test_candidates_of_other_classes_take_no_part():
    """Embeddings that follow the factor inside each class, and put the two classes on the wrong sides."""
    away = np.where(np.arange(60) % 2, 0.0, 0.3)
    prepared, embeddings = make_case(on_a_circle(FACTOR + away))
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {"texture: pitch": pytest.approx(1)}


def test_without_hidden_factors_there_is_nothing_to_tell():
    prepared, embeddings = make_case(on_a_circle(FACTOR))
    del prepared.manifest["factor_pitch"]
    assert factors.within_classes(prepared, "test", "attribute", embeddings) == {}
