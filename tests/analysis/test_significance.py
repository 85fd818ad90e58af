"""Bootstrap intervals and tests: coverage, pairing, seeds."""

import numpy as np
import pytest

from m3lib.analysis.significance import bootstrap, paired_bootstrap


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"rng seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


def clusters(rng, count=60):
    """Values with true mean 0 in clusters of 1 to 4 equal copies, which a bootstrap over pairs would trust too much."""
    groups = np.repeat(rng.permutation(count) * 7, rng.integers(1, 5, size=count))
    return rng.normal(size=7 * count)[groups], groups


def test_bootstrap_covers_the_true_mean(rng):
    covered = naive = 0
    for trial in range(400):
        values, groups = clusters(rng)
        low, high = bootstrap(values, groups, repeats=200, seed=trial)
        covered += low <= 0 <= high
        low, high = bootstrap(values, np.arange(len(values)), repeats=200, seed=trial)
        naive += low <= 0 <= high
    assert 0.87 < covered / 400 < 0.985
    assert naive < covered - 30  # groups matter


def test_bootstrap_is_seeded_and_ignores_names_of_groups(rng):
    values, groups = clusters(rng)
    assert bootstrap(values, groups, 50, 3) == bootstrap(values, groups, 50, 3) != bootstrap(values, groups, 50, 4)
    assert bootstrap(values, groups, 50, 3) == bootstrap(values, groups + 1000, 50, 3)
    assert bootstrap(np.full(9, 0.25), np.array([0, 0, 0, 0, 0, 1, 2, 3, 3]), 50, 0) == (0.25, 0.25)
    with pytest.raises(ValueError, match="one group per value"):
        bootstrap(values, groups[1:], 50, 0)


def test_paired_bootstrap_of_equal_variants(rng):
    values, groups = clusters(rng)
    assert paired_bootstrap(values, values, groups, 100, 0) == (0, 0, 0, 1)
    p = []
    for trial in range(300):  # equally good, not identical
        (a, groups), noise = clusters(rng), rng.normal(size=2 * 7 * 60).reshape(2, -1)
        p.append(paired_bootstrap(a + noise[0][groups], a + noise[1][groups], groups, 200, trial)[3])
    assert np.mean(np.array(p) < 0.05) < 0.15
    assert 0.3 < np.median(p) < 0.7


def test_paired_bootstrap_sees_a_small_steady_gain(rng):
    common, groups = clusters(rng)
    gain = 0.1 + 0.05 * rng.normal(size=7 * 60)[groups]  # far inside the spread of `common`
    difference, low, high, p = paired_bootstrap(common + gain, common, groups, 500, 0)
    assert difference == pytest.approx(gain.mean())
    assert 0 < low < difference < high < 0.2
    assert p == 1 / 501
    swapped = paired_bootstrap(common, common + gain, groups, 500, 0)
    assert swapped == pytest.approx((-difference, -high, -low, p))
    with pytest.raises(ValueError, match="broadcast"):
        paired_bootstrap(common, gain[1:], groups, 10, 0)
