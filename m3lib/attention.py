"""Attention by a query: where to look (spatial), and which channels to keep (channel).

Both parts follow ASEN_v2's form (github.com/Maryeon/asen, class ASENet_V2), written for all queries at once: a query is
a row of a learned table, one per attribute or one per class. Letters: B images, C channels, P positions of the feature
map, Q queries, h the attention width.
"""

import math

import torch
from torch import Tensor, nn


class SpatialAttention(nn.Module):
    """maps(b, q) = softmax over positions of <tanh(FC query), tanh(BN(Conv1x1 features))> / sqrt(h)."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.key = nn.Linear(channels, hidden, bias=False)  # a 1x1 convolution on (B, P, C)
        self.norm = nn.BatchNorm1d(hidden)
        self.query = nn.Linear(hidden, hidden)

    def keys(self, features: Tensor) -> Tensor:
        """(..., P, C) to (..., P, h); positions of all images share the batch statistics."""
        projected = self.key(features)  # (..., P, h)
        return torch.tanh(self.norm(projected.flatten(0, -2))).view(projected.shape)

    def queries(self, table: Tensor) -> Tensor:
        """(Q, h) to (Q, h), scaled so that the logits need no further division."""
        return torch.tanh(self.query(table)) / math.sqrt(table.shape[1])

    def forward(self, features: Tensor, table: Tensor) -> Tensor:
        """features (B, P, C), table (Q, h); returns maps (B, Q, P) that sum to 1 over P."""
        logits = self.queries(table) @ self.keys(features).mT  # (B, Q, P)
        return logits.float().softmax(dim=-1)


class ChannelAttention(nn.Module):
    """gate = sigmoid(FC(ReLU(FC [pooled; ReLU(FC query); context]))), each entry in (0, 1).

    The first layer reads a concatenation; it is computed as a sum of one product per part, so that parts shared by
    many queries or images are multiplied once.
    """

    def __init__(self, channels: int, hidden: int, context: int = 0):
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.read_pooled = nn.Linear(channels, hidden)
        self.read_query = nn.Linear(hidden, hidden, bias=False)
        self.read_context = nn.Linear(context, hidden, bias=False) if context else None
        self.write = nn.Linear(hidden, channels)

    def forward(self, pooled: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """pooled (B, Q, C), table (Q, h), context (B, Q, h) already read by `read_context`; returns (B, Q, C)."""
        hidden = self.read_pooled(pooled) + self.read_query(torch.relu(self.query(table)))  # (B, Q, h)
        if context is not None:
            hidden = hidden + context
        return torch.sigmoid(self.write(torch.relu(hidden)))
