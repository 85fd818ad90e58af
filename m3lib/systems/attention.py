"""Attention by a query: where to look (spatial), and which channels to use (channel).

Both modules follow ASEN_v2 (github.com/Maryeon/asen, class ASENet_V2), written for all queries at once: each row of a
query table is the query of one attribute or one class. Letters: see m3lib/systems/__init__.py; the table is (Q, q).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.config import Model


class SpatialAttention(nn.Module):
    """alpha(b, q) = softmax over positions of <tanh(FC query), tanh(BN(Conv1x1 features))> / sqrt(h).

    batch_norm: true in ASEN_v2; ASEN++ has no batch norm but a bias in the convolution.
    """

    def __init__(self, channels: int, width: int, query_size: int, batch_norm: bool = True):
        super().__init__()
        self.key = nn.Linear(channels, width, bias=not batch_norm)  # a 1x1 convolution on (B, P, C)
        self.norm = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.query = nn.Linear(query_size, width)

    def keys(self, features: Tensor) -> Tensor:
        """Return (..., P, h) from (..., P, C); batch statistics are taken over the positions of all images."""
        projected = self.key(features)  # (..., P, h)
        return torch.tanh(self.norm(projected.flatten(0, -2))).view(projected.shape)

    def queries(self, table: Tensor) -> Tensor:
        """Return (Q, h) from (Q, q), already divided by sqrt(h)."""
        return torch.tanh(self.query(table)) / math.sqrt(self.query.out_features)

    def forward(self, features: Tensor, table: Tensor, log_prior: Tensor | None = None) -> Tensor:
        """Return maps (B, Q, P) that sum to 1 over P, from features (B, P, C) and table (Q, q).

        log_prior: (B, Q, P), added to the logits.
        """
        logits = (self.queries(table) @ self.keys(features).mT).float()  # (B, Q, P)
        return (logits if log_prior is None else logits + log_prior).softmax(dim=-1)


class ChannelAttention(nn.Module):
    """gate = sigmoid(FC(ReLU(FC [z; ReLU(FC query); context]))), each entry in (0, 1).

    z: the pooled features. squeeze: the width between the two layers, by default the attention width.

    The FC of the concatenation is computed as a sum of one product per operand, so that an operand shared by many
    queries or images is multiplied once.
    """

    def __init__(self, channels: int, width: int, query_size: int, context: int = 0, squeeze: int = 0):
        super().__init__()
        squeeze = squeeze or width
        self.query = nn.Linear(query_size, width)
        self.read_pooled = nn.Linear(channels, squeeze)
        self.read_query = nn.Linear(width, squeeze, bias=False)
        self.read_context = nn.Linear(context, squeeze, bias=False) if context else None
        self.write = nn.Linear(squeeze, channels)

    def forward(self, z: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """Return gates (B, Q, C) from z (B, Q, C), table (Q, q), and context (B, Q, squeeze) out of `read_context`."""
        return self.gate(self.read_pooled(z), table, context)

    def gate(self, projected: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the same from `projected` (B, Q, squeeze), the output of `read_pooled` for z."""
        hidden = projected + self.read_query(torch.relu(self.query(table)))  # (B, Q, squeeze)
        if context is not None:
            hidden = hidden + context
        return torch.sigmoid(self.write(torch.relu(hidden)))


class QueryTable(nn.Module):
    """One query per attribute or class: learned vectors, or fixed one-hot vectors (then width = count)."""

    def __init__(self, count: int, width: int, kind: str, scale: float = 1.0):
        super().__init__()
        self.width = width if kind == "learned" else count
        if kind == "learned":
            self.rows = nn.Parameter(scale * torch.randn(count, width))
        else:
            self.register_buffer("rows", torch.eye(count), persistent=False)


class AttributeAttention(nn.Module):
    """ASEN_v2's attention: one table of attribute queries, spatial attention, then channel attention."""

    def __init__(self, channels: int, num_attributes: int, model: Model):
        super().__init__()
        width = model.attention_width
        self.table = QueryTable(num_attributes, width, model.queries)
        self.spatial = SpatialAttention(channels, width, self.table.width, model.attention_batch_norm)
        self.channel = ChannelAttention(channels, width, self.table.width)

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return maps alpha (B, N, P), gates (B, N, C) and h_n = z_n * gate_n (B, N, C), from X (B, P, C)."""
        alpha = self.spatial(X, self.table.rows)
        z = alpha.to(X.dtype) @ X  # (B, N, C)
        gate = self.channel(z, self.table.rows)
        return alpha, gate, z * gate


class ClassHeads(nn.Linear):
    """One logit per class, from the representation of the class's attribute: (B, N, D) to (B, M)."""

    def __init__(self, dim: int, class_counts: list[int]):
        super().__init__(dim, sum(class_counts))
        self.class_counts = class_counts

    def forward(self, h: Tensor) -> Tensor:
        heads = zip(self.weight.split(self.class_counts), self.bias.split(self.class_counts), strict=True)
        return torch.cat([F.linear(h[:, n], weight, bias) for n, (weight, bias) in enumerate(heads)], dim=1)


def unit(x: Tensor) -> Tensor:
    """Scale rows to length 1, in float32, because cosines of bf16 rows would be coarse."""
    return F.normalize(x.float(), dim=-1)
