"""Both attentions against their formulas, one image and one query at a time."""

import numpy as np
import pytest
import torch

from m3lib.attention import ChannelAttention, SpatialAttention
from reference import as_float64, channel_gate, spatial_map, state_of
from tiny import generator, unsettle

B, P, C, Q, H = 3, 7, 8, 4, 6


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed))


@pytest.fixture
def spatial() -> SpatialAttention:
    torch.manual_seed(0)
    module = SpatialAttention(C, H).eval()
    unsettle(module.norm)
    return module


def test_spatial_attention_against_its_formula(spatial):
    X, table = features(B, P, C), features(Q, H, seed=1)
    got, w = spatial(X, table), state_of(spatial)
    for b in range(B):
        for q in range(Q):
            expected = spatial_map(w, as_float64(X[b]), as_float64(table[q]))
            np.testing.assert_allclose(got[b, q].detach(), expected, rtol=1e-4, atol=1e-6)


def test_maps_are_shares_of_the_positions(spatial):
    maps = spatial(20 * features(B, P, C), 20 * features(Q, H, seed=1))
    assert maps.shape == (B, Q, P)
    assert (maps >= 0).all()
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(B, Q))


def test_maps_are_float32_under_autocast(spatial):
    with torch.autocast("cpu", torch.bfloat16):
        maps = spatial(features(B, P, C), features(Q, H))
    assert maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(B, Q))


def test_positions_of_all_images_share_the_batch_statistics(spatial):
    X = features(B, 2, P, C)
    spatial.train()
    got = spatial.keys(X)
    projected = as_float64(spatial.key(X)).reshape(-1, H)
    centred = (projected - projected.mean(axis=0)) / np.sqrt(projected.var(axis=0) + 1e-5)
    expected = np.tanh(centred * as_float64(spatial.norm.weight) + as_float64(spatial.norm.bias))
    np.testing.assert_allclose(got.detach().numpy().reshape(-1, H), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=[0, 5], ids=["no context", "context"])
def channel(request) -> ChannelAttention:
    torch.manual_seed(1)
    return ChannelAttention(C, H, request.param)


def read(channel: ChannelAttention, context: torch.Tensor) -> torch.Tensor | None:
    return channel.read_context(context) if channel.read_context else None


def test_channel_attention_against_one_layer_that_reads_a_concatenation(channel):
    pooled, table, context = features(B, Q, C), features(Q, H, seed=1), features(B, Q, 5, seed=2)
    got, w = channel(pooled, table, read(channel, context)), state_of(channel)
    for b in range(B):
        for q in range(Q):
            third = as_float64(context[b, q]) if channel.read_context else None
            expected = channel_gate(w, as_float64(pooled[b, q]), as_float64(table[q]), third)
            np.testing.assert_allclose(got[b, q].detach(), expected, rtol=1e-4, atol=1e-6)


def test_gates_lie_between_zero_and_one(channel):
    gate = channel(features(B, Q, C), features(Q, H), read(channel, features(B, Q, 5)))
    assert gate.shape == (B, Q, C)
    assert ((gate > 0) & (gate < 1)).all()


def test_gradient_reaches_queries_and_features(spatial, channel):
    spatial.train()
    X, table = features(B, P, C).requires_grad_(), features(Q, H, seed=1).requires_grad_()
    maps = spatial(X, table)
    spread = (maps * features(*maps.shape, seed=2)).sum()
    pooled = features(B, Q, C, seed=3).requires_grad_()
    context = features(B, Q, 5, seed=4).requires_grad_()
    gate = channel(pooled, table.detach().requires_grad_(), read(channel, context))
    (spread + gate.sum()).backward()
    reached = [X, table, pooled, *spatial.parameters(), *channel.parameters()]
    assert all((part.grad != 0).any() for part in reached)
    assert (context.grad is not None) == (channel.read_context is not None)
