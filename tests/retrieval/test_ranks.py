"""The order of candidates, its ties, and the ranks of the relevant ones: against literals and the whole order."""

import numpy as np
import pytest
import torch

from m3lib.retrieval import metrics
from m3lib.retrieval.metrics import evaluate_attribute, rank_order, tie_keys


@pytest.fixture
def rng():
    seed = np.random.SeedSequence().entropy % 2**32
    print(f"rng seed {seed}")  # pytest shows it when the test fails
    return np.random.default_rng(seed)


# ---- rank_order and tie_keys


def test_rank_order_literal():
    similarity = torch.tensor([[0.1, 0.9, 0.1, 0.5], [0.0, -0.0, 0.0, -0.0], [1.0, torch.inf, -torch.inf, 1.0]])
    tie = torch.tensor([7, 3, 2, 5])
    assert rank_order(similarity, tie).tolist() == [[1, 3, 2, 0], [2, 1, 3, 0], [1, 3, 0, 2]]


def test_rank_order_refuses_nan_and_shapes():
    with pytest.raises(FloatingPointError, match="NaN"):
        rank_order(torch.tensor([[0.0, torch.nan]]), torch.arange(2))
    with pytest.raises(ValueError, match="tie keys"):
        rank_order(torch.zeros(2, 3), torch.arange(2))


def test_rank_order_knows_names_not_places(rng):
    for _ in range(10):
        Q, C = rng.integers(1, 12), rng.integers(1, 40)
        similarity = torch.from_numpy(rng.integers(4, size=(Q, C)))
        tie = torch.from_numpy(rng.permutation(100)[:C])
        order = rank_order(similarity, tie)
        shuffle = torch.from_numpy(rng.permutation(len(tie)))
        assert torch.equal(shuffle[rank_order(similarity[:, shuffle], tie[shuffle])], order)
        assert torch.equal(torch.cat([rank_order(row[None], tie) for row in similarity]), order)


def test_tie_keys_are_stable_and_spread():
    keys = tie_keys([f"img/{i:05}.jpg" for i in range(2000)])
    assert keys.dtype == torch.int64
    assert keys.min() >= 0
    assert len(keys.unique()) == 2000
    assert tie_keys(["a", "b"]).tolist() == [2340832890917691671, 4771952420932724666]  # b2sum -l 64, halved
    place = torch.arange(2000.0)
    assert abs(torch.corrcoef(torch.stack([keys.argsort().float(), place]))[0, 1]) < 0.1


@pytest.mark.parametrize("levels", [1, 3, 200, 10**6])
@pytest.mark.parametrize("pairs", [1, 5, 64])
@pytest.mark.parametrize("block", [1, 1000, 1 << 24])
def test_ranks_by_search_and_by_sorting_are_those_of_the_order(rng, monkeypatch, levels, pairs, block):
    monkeypatch.setattr(metrics, "PAIRS", pairs)
    monkeypatch.setattr(metrics, "BLOCK", block)
    Q, C, K = rng.integers(1, 30), rng.integers(1, 500), 4
    similarity = torch.from_numpy(rng.integers(levels, size=(Q, C)) - levels // 2).float()
    similarity[torch.from_numpy(rng.random((Q, C)) < 0.1)] *= -0.0  # equal to 0, though its bits are not
    carriers = torch.from_numpy(rng.random((K, C)) < 0.3)
    query, class_id = torch.from_numpy(rng.random((Q, K)) < 0.6).nonzero(as_tuple=True)
    order = rank_order(similarity, torch.arange(C))
    expected = [(carriers[v][order[q]].nonzero()[:, 0] + 1).tolist() for q, v in zip(query, class_id, strict=True)]
    for find in (metrics.ranks_by_search, metrics.ranks_by_sorting):
        relevant, rank = find(similarity, carriers, query, class_id)
        assert relevant.tolist() == [len(ranks) for ranks in expected]
        assert rank.tolist() == [r for ranks in expected for r in ranks]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(rng, threads):
    before = torch.get_num_threads()
    similarity, ql, cl = (
        torch.from_numpy(rng.random((200, 90))),
        rng.random((200, 3)) < 0.5,
        rng.random((90, 3)) < 0.3,
    )
    scores = evaluate_attribute(similarity, torch.arange(90), ql, cl)
    torch.set_num_threads(threads)
    try:
        again = evaluate_attribute(similarity, torch.arange(90), ql, cl)
        assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(scores).values(), strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("find", [metrics.ranks_by_search, metrics.ranks_by_sorting])
def test_nan_is_refused_wherever_it_stands(rng, find):
    similarity = torch.rand(5, 20)
    similarity[rng.integers(5), rng.integers(20)] = torch.nan
    query = torch.arange(5)
    with pytest.raises(FloatingPointError, match="NaN"):
        find(similarity, torch.ones(1, 20, dtype=torch.bool), query, torch.zeros(5, dtype=torch.int64))
