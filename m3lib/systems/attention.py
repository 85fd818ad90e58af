"""Attention by a query: where to look (spatial), and which channels to keep (channel).

Both parts follow ASEN_v2's form (github.com/Maryeon/asen, class ASENet_V2), written for all queries at once: a query is
a row of a table, one per attribute or one per class. Letters: B images, C channels, P positions of the feature map,
Q queries, h the attention width, N attributes, M classes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """maps(b, q) = softmax over positions of <tanh(FC query), tanh(BN(Conv1x1 features))> / sqrt(h).

    norm: with batch norm, as ASEN_v2; without, as ASEN++, the convolution has a bias instead.
    """

    def __init__(self, channels: int, hidden: int, width: int, norm: bool = True):
        super().__init__()
        self.key = nn.Linear(channels, hidden, bias=not norm)  # a 1x1 convolution on (B, P, C)
        self.norm = nn.BatchNorm1d(hidden) if norm else nn.Identity()
        self.query = nn.Linear(width, hidden)

    def keys(self, features: Tensor) -> Tensor:
        """(..., P, C) to (..., P, h); positions of all images share the batch statistics."""
        projected = self.key(features)  # (..., P, h)
        return torch.tanh(self.norm(projected.flatten(0, -2))).view(projected.shape)

    def queries(self, table: Tensor) -> Tensor:
        """(Q, width) to (Q, h), scaled so that the logits need no further division."""
        return torch.tanh(self.query(table)) / math.sqrt(self.query.out_features)

    def forward(self, features: Tensor, table: Tensor, prior: Tensor | None = None) -> Tensor:
        """features (B, P, C), table (Q, width); returns maps (B, Q, P) that sum to 1 over P.

        prior: (B, Q, P), the logarithm of a weight that each position has beforehand.
        """
        logits = (self.queries(table) @ self.keys(features).mT).float()  # (B, Q, P)
        return (logits if prior is None else logits + prior).softmax(dim=-1)


class ChannelAttention(nn.Module):
    """gate = sigmoid(FC(ReLU(FC [pooled; ReLU(FC query); context]))), each entry in (0, 1).

    The first layer reads a concatenation; it is computed as a sum of one product per part, so that parts shared by
    many queries or images are multiplied once. squeeze: the width between the two layers, `hidden` if not given.
    """

    def __init__(self, channels: int, hidden: int, width: int, context: int = 0, squeeze: int = 0):
        super().__init__()
        squeeze = squeeze or hidden
        self.query = nn.Linear(width, hidden)
        self.read_pooled = nn.Linear(channels, squeeze)
        self.read_query = nn.Linear(hidden, squeeze, bias=False)
        self.read_context = nn.Linear(context, squeeze, bias=False) if context else None
        self.write = nn.Linear(squeeze, channels)

    def forward(self, pooled: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """pooled (B, Q, C), table (Q, width), context (B, Q, squeeze) read by `read_context`; returns (B, Q, C)."""
        return self.gate(self.read_pooled(pooled), table, context)

    def gate(self, read: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """The same from read (B, Q, squeeze), what `read_pooled` makes of the pooled features."""
        hidden = read + self.read_query(torch.relu(self.query(table)))  # (B, Q, squeeze)
        if context is not None:
            hidden = hidden + context
        return torch.sigmoid(self.write(torch.relu(hidden)))


class QueryTable(nn.Module):
    """A row per attribute or class: learned, or the one-hot vectors themselves (then width = count)."""

    def __init__(self, count: int, hidden: int, kind: str, scale: float = 1.0):
        super().__init__()
        self.width = hidden if kind == "learned" else count
        if kind == "learned":
            self.rows = nn.Parameter(scale * torch.randn(count, hidden))
        else:
            self.register_buffer("rows", torch.eye(count), persistent=False)


class AttributeAttention(nn.Module):
    """ASEN_v2's block: one table of attribute embeddings A, a spatial attention, then a channel attention."""

    def __init__(self, channels: int, num_attributes: int, hidden: int, queries: str, norm: bool):
        super().__init__()
        self.table = QueryTable(num_attributes, hidden, queries)
        self.spatial = SpatialAttention(channels, hidden, self.table.width, norm)
        self.channel = ChannelAttention(channels, hidden, self.table.width)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """X (B, P, C) to maps (B, N, P), gate (B, N, C) and h = z * gate (B, N, C)."""
        maps = self.spatial(X, self.table.rows)
        z = maps.to(X.dtype) @ X  # (B, N, C)
        gate = self.channel(z, self.table.rows)
        return maps, gate, z * gate


class ClassHeads(nn.Linear):
    """One logit per class, read from the embedding of the class's attribute: (B, N, D) to (B, M)."""

    def __init__(self, dim: int, sizes: list[int]):
        super().__init__(dim, sum(sizes))
        self.sizes = sizes

    def forward(self, h: Tensor) -> Tensor:
        heads = zip(self.weight.split(self.sizes), self.bias.split(self.sizes), strict=True)
        return torch.cat([F.linear(h[:, n], weight, bias) for n, (weight, bias) in enumerate(heads)], dim=1)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32: similarities of bf16 rows would be coarse."""
    return F.normalize(x.float(), dim=-1)
