"""Paired bootstrap: coverage, grouping, seeds."""

import numpy as np
import pytest

from m3lib.analysis.significance import paired_bootstrap, query_images
from m3lib.retrieval import metrics, ranking
from tiny import TAXONOMY, make_prepared


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"rng seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


def clusters(rng, count=60):
    """Values with true mean 0 in clusters of 1 to 4 equal copies, which a bootstrap over pairs would trust too much."""
    groups = np.repeat(rng.permutation(count) * 7, rng.integers(1, 5, size=count))
    return rng.normal(size=7 * count)[groups], groups


def test_the_interval_covers_the_true_difference_only_if_pairs_are_grouped_by_image(rng):
    covered = naive = 0
    for trial in range(400):
        values, groups = clusters(rng)
        _, low, high, _ = paired_bootstrap(values, 0 * values, groups, 200, trial)
        covered += low <= 0 <= high
        _, low, high, _ = paired_bootstrap(values, 0 * values, np.arange(len(values)), 200, trial)
        naive += low <= 0 <= high
    assert 0.87 < covered / 400 < 0.985
    assert naive < covered - 30


def test_equal_and_equally_good_variants(rng):
    values, groups = clusters(rng)
    assert paired_bootstrap(values, values, groups, 100, 0) == (0, 0, 0, 1)
    p = []
    for trial in range(300):  # equally good, not identical
        (a, groups), noise = clusters(rng), rng.normal(size=2 * 7 * 60).reshape(2, -1)
        p.append(paired_bootstrap(a + noise[0][groups], a + noise[1][groups], groups, 200, trial)[3])
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert 0.3 < np.median(p) < 0.7


def test_a_small_steady_gain_is_significant_and_the_result_depends_on_the_seed_only(rng):
    common, groups = clusters(rng)
    gain = 0.1 + 0.05 * rng.normal(size=7 * 60)[groups]  # far inside the spread of `common`
    result = difference, low, high, p = paired_bootstrap(common + gain, common, groups, 500, 0)
    assert difference == pytest.approx(gain.mean())
    assert 0 < low < difference < high < 0.2
    assert p == 1 / 501
    assert paired_bootstrap(common + gain, common, groups + 1000, 500, 0) == result
    assert paired_bootstrap(common + gain, common, groups, 500, 1) != result
    swapped = paired_bootstrap(common, common + gain, groups, 500, 0)
    assert swapped == pytest.approx((-difference, -high, -low, p))
    with pytest.raises(ValueError, match="broadcast"):
        paired_bootstrap(common, gain[1:], groups, 10, 0)
    with pytest.raises(ValueError, match="length"):
        paired_bootstrap(common, gain, groups[1:], 10, 0)


@pytest.mark.parametrize(("images", "difference"), [(0, np.nan), (1, 0.5), (2, 0.5), (5, 0.5)])
def test_a_few_query_images_allow_no_interval(images, difference):
    """Even if every one of them favours the same system, and whether or not an image has several pairs."""
    groups = np.repeat(np.arange(images), 20)
    found = paired_bootstrap(np.full(len(groups), 0.75), np.full(len(groups), 0.25), groups, 100)
    np.testing.assert_equal(found, (difference, np.nan, np.nan, np.nan))


def test_six_query_images_allow_one():
    assert paired_bootstrap(np.full(6, 0.75), np.full(6, 0.25), np.arange(6), 100) == (0.5, 0.5, 0.5, 1 / 101)


def test_the_images_of_the_pairs_follow_the_measured_attributes():
    labels = np.zeros((4, TAXONOMY.num_classes), bool)
    labels[[0, 1, 1, 3], [0, 1, 7, 7]] = True  # image 2 is unknown everywhere
    prepared = make_prepared(labels, [("test", "query")] * 3 + [("test", "candidate")])
    results = ranking.evaluate(prepared, "test", "random")
    assert query_images(prepared, "test", results).tolist() == [0, 1, 1]
    assert query_images(prepared, "test", metrics.measured(results)).tolist() == [1]  # only sleeve has a candidate
    assert query_images(prepared, "test", {}).tolist() == []
