"""ASEN and ASEN_v2 after their released code, github.com/Maryeon/asen.

Differences from that code: one forward pass returns the embeddings of all attributes, and the backbone may be any timm
model.
"""

import torch
from torch import Tensor, nn

from m3lib.config import Variant
from m3lib.systems.attention import AttributeAttention, unit
from m3lib.systems.base import Outputs, System
from m3lib.taxonomy import Taxonomy


class ASEN(System):
    """ASEN (AAAI 2020), class ASENet: attention by a one-hot attribute vector.

    alpha_n = softmax over p of tanh(w . (tanh(a_n) * tanh(V x_p)) + b)    where to look
    z_n = sum over p of alpha_np x_p
    h_n = z_n * sigmoid(MLP [z_n; ReLU(r_n)])                              which channels to use
    f_n = L2(FC h_n)

    a_n and r_n are rows of two learned tables: linear layers of a one-hot vector. The tanh around the spatial logits is
    in the released code; it limits the ratio of two attention weights to e^2.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "classification", "m3_classification", "evidence"}
    settings = {"attention_width", "attribute_embedding"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, h, N = self.backbone.channels, variant.model.attention_width, taxonomy.num_attributes
        self.project = nn.Linear(C, h)  # V, a 1x1 convolution
        self.spatial_query = one_hot_table(N, h)  # a
        self.spatial_logit = nn.Linear(h, 1)  # w, b
        self.channel_query = one_hot_table(N, C)  # r
        self.channel_gate = nn.Sequential(nn.Linear(2 * C, h), nn.ReLU(), nn.Linear(h, C), nn.Sigmoid())
        self.output = nn.Linear(C, variant.model.attribute_embedding)
        self.heads = self.class_heads(variant, variant.model.attribute_embedding)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        alpha = self.spatial_attention(X)  # (B, N, P)
        z = alpha.to(X.dtype) @ X  # (B, N, C)
        r = torch.relu(self.channel_query).expand(len(z), -1, -1)  # (B, N, C)
        h = z * self.channel_gate(torch.cat([z, r.to(z.dtype)], dim=2))  # (B, N, C)
        f = self.output(h)  # (B, N, D)
        return Outputs(unit(f), logits=self.heads(f) if self.heads else None, attribute_maps=alpha)

    def spatial_attention(self, X: Tensor) -> Tensor:
        """Return alpha (B, N, P).

        w . (a * u) = (w * a) . u: multiplying w into the queries avoids a tensor of (B, N, P, h).
        """
        query = torch.tanh(self.spatial_query) * self.spatial_logit.weight  # (N, h)
        logits = torch.tanh(query @ torch.tanh(self.project(X)).mT + self.spatial_logit.bias)  # (B, N, P)
        return logits.float().softmax(dim=-1)


def one_hot_table(num_attributes: int, width: int) -> nn.Parameter:
    """Return the weight of a bias-free linear layer of one-hot vectors, initialised as torch initialises that layer."""
    bound = num_attributes**-0.5
    return nn.Parameter(torch.empty(num_attributes, width).uniform_(-bound, bound))


class ASENv2(System):
    """ASEN_v2, class ASENet_V2: one attribute table for both attentions (`attention.py`); f_n = L2(h_n), so D = C.

    The released convolution has a bias in front of its batch norm, which cancels it; here it has none.
    """

    outputs = {"attribute"}
    losses = {"asen_triplet", "classification", "m3_classification", "evidence"}
    settings = {"attention_width", "queries", "attention_batch_norm"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C = self.backbone.channels
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, variant.model)
        self.heads = self.class_heads(variant, C)

    def forward(self, images: Tensor) -> Outputs:
        alpha, _, h = self.attributes(self.backbone(images))
        return Outputs(unit(h), logits=self.heads(h) if self.heads else None, attribute_maps=alpha)
