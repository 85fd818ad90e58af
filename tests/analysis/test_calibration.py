"""The calibration error against a loop and a closed form."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from embedded import make_embeddings, make_split
from m3lib.analysis import calibration
from tiny import TAXONOMY


def naive(p: list[float], is_right: list[bool]) -> float:
    """The predictions in rising order, cut at the k-th fifteenth: bins of equal size, the larger ones first."""
    predictions, error, start = sorted(zip(p, is_right, strict=True)), 0.0, 0
    for number in range(15):
        size = len(p) // 15 + (number < len(p) % 15)
        members = predictions[start : start + size]
        start += size
        if members:
            gap = sum(x for x, _ in members) / size - sum(right for _, right in members) / size
            error += abs(gap) * size / len(p)
    return error


@pytest.mark.parametrize("count", [1, 14, 15, 100, 1003])
def test_matches_a_naive_loop(count):
    rng = np.random.default_rng()
    p = rng.random(count)
    is_right = rng.random(count) < p**2
    assert calibration.expected_calibration_error(p, is_right) == pytest.approx(naive(p.tolist(), is_right.tolist()))


def test_of_probabilities_that_are_right_is_small_and_of_too_sure_ones_is_their_excess():
    rng = np.random.default_rng(0)
    p = rng.random(40_000)
    assert calibration.expected_calibration_error(p, rng.random(40_000) < p) < 0.01
    assert calibration.expected_calibration_error(np.full(40_000, 0.9), rng.random(40_000) < 0.6) == pytest.approx(
        0.3, abs=0.01
    )
    assert np.isnan(calibration.expected_calibration_error(np.zeros(0), np.zeros(0, bool)))


def test_one_class_per_image_counts_the_top_class_and_several_count_all():
    prepared, embeddings = make_split(120), make_embeddings(120)
    errors = calibration.by_attribute(prepared, "test", embeddings)
    assert list(errors) == TAXONOMY.names
    for n, name in enumerate(TAXONOMY.names):
        p, is_right, start, stop = [], [], *TAXONOMY.offsets[n : n + 2].tolist()
        for row in prepared.rows("test"):
            labels, values = prepared.labels[row, start:stop], embeddings.posterior[row, start:stop].double().tolist()
            if labels.any():
                chosen = range(stop - start) if name == "details" else [values.index(max(values))]
                p += [values[m] for m in chosen]
                is_right += [bool(labels[m]) for m in chosen]
        assert errors[name] == pytest.approx(naive(p, is_right))
    assert calibration.by_attribute(prepared, "test", replace(embeddings, posterior=None)) == {}


def test_an_attribute_without_a_label_has_no_calibration():
    prepared = make_split(60)
    unknown = prepared.manifest["labels"].map(lambda ids: [m for m in ids if m > 2])
    prepared = replace(prepared, manifest=prepared.manifest.assign(labels=unknown))
    errors = calibration.by_attribute(prepared, "test", make_embeddings(60))
    assert np.isnan(errors["colour"])
    assert not np.isnan(errors["sleeve"])


def test_the_bytes_of_an_image_are_those_of_the_embeddings_that_its_score_reads():
    embeddings = make_embeddings(5)
    sizes = {"attribute": 2 * 3 * 6, "posterior": 2 * 9, "weighted": 2 * (9 + 9 * 6), "segment": 2 * (3 * 6 + 9)}
    assert {score: embeddings.bytes_per_image(score) for score in sizes} == sizes
    assert torch.float16 == embeddings.posterior.dtype
