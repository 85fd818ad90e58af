"""The attentions against their formulas, one image and one query at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from m3lib import config
from m3lib.systems.attention import AttributeAttention, ChannelAttention, ClassHeads, QueryTable, SpatialAttention
from reference import as_float64, attribute_branch, channel_gate, head_logits, in_float64, spatial_map, state_of
from tiny import SETTINGS, generator, unsettle

B, P, C, Q, H, W = 3, 7, 8, 4, 6, 5
NORMS = pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
CONTEXTS = pytest.mark.parametrize("context", [0, 9], ids=["no context", "context"])


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def make_spatial(norm: bool = True) -> SpatialAttention:
    torch.manual_seed(0)
    module = SpatialAttention(C, H, W, norm).eval()
    if norm:
        unsettle(module.norm)
    return module


@NORMS
def test_spatial_attention_against_its_formula(norm):
    spatial, X, table = make_spatial(norm), features(B, P, C), features(Q, W, seed=1)
    got, w = spatial(X, table), state_of(spatial)
    assert ("norm.weight" in w, "key.bias" in w) == (norm, not norm)  # a bias in front of a batch norm does nothing
    for b in range(B):
        for q in range(Q):
            expected = spatial_map(w, as_float64(X[b]), as_float64(table[q]))
            np.testing.assert_allclose(got[b, q].detach(), expected, rtol=1e-4, atol=1e-6)


def test_positions_of_all_images_share_the_batch_statistics():
    spatial, X = make_spatial().train(), features(B, 2, P, C)
    got = spatial.keys(X)
    projected = as_float64(spatial.key(X)).reshape(-1, H)
    centred = (projected - projected.mean(axis=0)) / np.sqrt(projected.var(axis=0) + 1e-5)
    expected = np.tanh(centred * as_float64(spatial.norm.weight) + as_float64(spatial.norm.bias))
    np.testing.assert_allclose(got.detach().numpy().reshape(-1, H), expected, rtol=1e-4, atol=1e-5)


def make_channel(context: int, squeeze: int = 0) -> ChannelAttention:
    torch.manual_seed(1)
    return ChannelAttention(C, H, W, context, squeeze)


def read(channel: ChannelAttention, context: torch.Tensor) -> torch.Tensor | None:
    return channel.read_context(context) if channel.read_context else None


@CONTEXTS
@pytest.mark.parametrize("squeeze", [0, 3])
def test_channel_attention_against_one_layer_that_reads_a_concatenation(context, squeeze):
    channel, pooled, table = make_channel(context, squeeze), features(B, Q, C), features(Q, W, seed=1)
    h = features(B, Q, context, seed=2)
    got, w = channel(pooled, table, read(channel, h)), state_of(channel)
    assert w["write.weight"].shape == (C, squeeze or H)
    for b in range(B):
        for q in range(Q):
            third = as_float64(h[b, q]) if context else None
            expected = channel_gate(w, as_float64(pooled[b, q]), as_float64(table[q]), third)
            np.testing.assert_allclose(got[b, q].detach(), expected, rtol=1e-4, atol=1e-6)


@NORMS
def test_spatial_gradient_against_finite_differences(norm):
    """In training mode: with batch norm, every position reaches every other one's logit."""
    spatial = make_spatial(norm).double().train()
    inputs = [features(2, 3, C, dtype=torch.float64), features(2, W, seed=1, dtype=torch.float64)]
    with in_float64():
        check_gradient(spatial, inputs)


@CONTEXTS
def test_channel_gradient_against_finite_differences(context):
    channel = make_channel(context).double()
    shapes = [(2, 2, C), (2, W)] + ([(2, 2, H)] if context else [])
    check_gradient(channel, [features(*shape, seed=k, dtype=torch.float64) for k, shape in enumerate(shapes)])


def check_gradient(module: nn.Module, inputs: list[torch.Tensor]) -> None:
    """By the inputs and by every parameter that these inputs use."""
    used = {name: value.detach() for name, value in module.named_parameters() if "context" not in name}

    def call(*values: torch.Tensor) -> torch.Tensor:
        given = dict(zip(used, values[len(inputs) :], strict=True))
        return torch.func.functional_call(module, given, values[: len(inputs)])

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in [*inputs, *used.values()]])


def make_settings(queries: str, norm: bool) -> config.Model:
    return replace(SETTINGS.model, attention_width=H, queries=queries, attention_batch_norm=norm)


@pytest.mark.parametrize("queries", ["learned", "one_hot"])
@NORMS
def test_attribute_attention_against_its_formula(queries, norm):
    torch.manual_seed(2)
    attention, X = AttributeAttention(C, Q, make_settings(queries, norm)).eval(), features(B, P, C)
    parts, w = attention(X), {f"attributes.{name}": value for name, value in state_of(attention).items()}
    assert ("attributes.table.rows" in w) == (queries == "learned")
    for b in range(B):
        for q in range(Q):
            expected = attribute_branch(w, as_float64(X[b]), q, np.arange(Q))
            for part, value in zip(parts, expected, strict=True):
                np.testing.assert_allclose(part[b, q].detach(), value, rtol=1e-4, atol=1e-6)


def test_learned_queries_start_at_their_scale():
    torch.manual_seed(3)
    for scale in (1.0, 0.02):
        rows = QueryTable(500, 40, "learned", scale).rows
        assert rows.requires_grad
        assert float(rows.detach().mean()) == pytest.approx(0, abs=0.03 * scale)
        assert float(rows.detach().std()) == pytest.approx(scale, rel=0.03)


def test_one_hot_queries_are_the_unit_vectors_and_not_trained():
    table = QueryTable(Q, H, "one_hot")
    assert torch.equal(table.rows, torch.eye(Q))
    assert (table.width, list(table.parameters()), list(table.state_dict())) == (Q, [], [])


def test_each_class_head_reads_its_own_attribute():
    torch.manual_seed(4)
    sizes, own = [3, 2, 4], np.repeat([0, 1, 2], [3, 2, 4])
    heads, h = ClassHeads(C, sizes), features(B, 3, C)
    w = {f"heads.{name}": value for name, value in state_of(heads).items()}
    for b in range(B):
        expected = head_logits(w, as_float64(h[b]), own)["logits"]
        np.testing.assert_allclose(heads(h)[b].detach(), expected, rtol=1e-4, atol=1e-6)
