"""M3-Net and its two halves (CVPR 2023): a reconstruction from the poster, every open point decided in a docstring.

Fixed by the poster: two sub-networks (attributes, classes) with attention of their own, progressive refinement, the
taxonomy as prior, and Losses 1 to 3 (`losses.py`). Built here from ASEN_v2's attention block, so that what differs from
the earlier systems is the idea and not the parts. Letters as in system.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.config import Model, Variant
from m3lib.systems.attention import AttributeAttention, ChannelAttention, ClassHeads, QueryTable, SpatialAttention, unit
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Centers
from m3lib.taxonomy import Taxonomy


def spread(x: Tensor, sizes: list[int]) -> Tensor:
    """(B, K, ...): row n of x (B, N, ...) for each of the sizes[n] classes of attribute n. Its gradient is a sum, where
    an index's is a scatter that runs on one core."""
    return torch.cat([part.expand(-1, size, -1) for part, size in zip(x.split(1, dim=1), sizes, strict=True)], dim=1)


def chosen(x: Tensor, dim: int, wanted: Tensor | None) -> Tensor:
    """The wanted classes (K,) of x, whose classes lie along `dim`."""
    if wanted is None or len(wanted) == x.shape[dim]:
        return x
    return x.index_select(dim, wanted.to(x.device))


class M3NetA(System):
    """M3-Net_a: attention by attribute alone; class spaces are learned masks on the attribute embedding.

    phi_m = L2(ReLU(mask_m) * FC h_n), masks initialised N(0.9, 0.7) as in conditional similarity networks.
    """

    outputs = {"attribute", "logits", "classes"}
    losses = {"asen_triplet", "m3_classification", "m3_instance", "m3_cluster"}
    settings = {"attention_width", "queries", "attention_batch_norm", "class_embedding"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.attributes = AttributeAttention(
            C, taxonomy.num_attributes, model.attention_width, model.queries, model.attention_batch_norm
        )
        self.heads = ClassHeads(C, self.sizes)
        self.reduce = nn.Linear(C, model.class_embedding)
        self.mask = nn.Parameter(0.9 + 0.7 * torch.randn(M, model.class_embedding))
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor, wanted: Tensor | None = None) -> Outputs:
        maps, _, h = self.attributes(self.backbone(images))
        shared = spread(self.reduce(h), self.split(wanted))  # (B, K, d)
        phi = unit(shared * torch.relu(chosen(self.mask, 0, wanted)))
        return Outputs(unit(h), logits=self.heads(h), classes=phi, attribute_maps=maps, wanted=wanted)


class ClassBranch(nn.Module):
    """M3-Net's class sub-network: for each class, where to look, which channels to keep, and an embedding phi_m."""

    def __init__(self, channels: int, model: Model, width: int, context: int):
        super().__init__()
        self.spatial = SpatialAttention(channels, model.attention_width, width, model.attention_batch_norm)
        self.channel = ChannelAttention(channels, model.attention_width, width, context)
        self.reduce = nn.Linear(channels, model.class_embedding)

    def keep(self, X: Tensor, maps: Tensor, table: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, K, C): the features X (B, P, C) pooled by the maps (B, K, P), and of them the channels that each class
        keeps; table (K, h), context (B, K, h)."""
        shares, read = maps.to(X.dtype), self.channel.read_pooled
        pooled = shares @ X  # (B, K, C)
        # A map sums to 1, so that pooling and a linear layer may change places: the fewer rows are read.
        told = shares @ read(X) if len(table) > X.shape[1] else read(pooled)  # (B, K, h)
        return pooled * self.channel.gate(told, table, context)


class M3NetC(System):
    """M3-Net_c: attention by class alone, on the backbone's features; no attribute embedding."""

    outputs = {"logits", "classes"}
    losses = {"m3_classification", "m3_instance", "m3_cluster"}
    settings = {"attention_width", "attention_batch_norm", "class_embedding"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.table = QueryTable(M, model.attention_width, "learned")  # C, the classes' embeddings
        self.classes = ClassBranch(C, model, model.attention_width, context=0)
        self.head = nn.Parameter(torch.randn(M, C) / C**0.5)
        self.bias = nn.Parameter(torch.zeros(M))
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor, wanted: Tensor | None = None) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        maps = self.classes.spatial(X, self.table.rows)  # (B, M, P)
        kept = self.classes.keep(X, maps, self.table.rows)  # (B, M, C): all, since Loss 1 reads them
        logits = (kept * self.head.to(kept.dtype)).sum(dim=2) + self.bias  # (B, M)
        phi = unit(self.classes.reduce(chosen(kept, 1, wanted)))  # (B, K, d)
        return Outputs(logits=logits, classes=phi, class_maps=maps, wanted=wanted)


class M3Net(System):
    """M3-Net: the attribute sub-network refines the features, the class sub-network reads what was kept.

    Class queries carry their attribute's as a parent: c_m = C_m + W A_n (the taxonomy as prior;
    model.attribute_conditioned). The refinement goes from coarse to fine (model.refine): a class looks where its
    attribute looked, its map beta_m being the softmax of its own logits + log(1 + P alpha_n), and keeps of the channels
    that its attribute kept, u_m * gate_n.
    Refined so, the features are read once for all attributes; features refined before they are read, X * (1 + P
    alpha_n) / 2 * gate_n, are read once an attribute and ranked no better. The channel attention of a class also reads
    the attribute's representation h_n of the image. A class probability sums the evidence of both sub-networks, since
    the poster leaves open which one it comes from: the attribute's w_m . h_n + b_m, and v_m . u_m of what the class
    looks at. The latter needs no gates, so that in training those are made for the classes wanted alone.
    """

    outputs = {"attribute", "logits", "classes"}
    losses = {"asen_triplet", "m3_classification", "m3_instance", "m3_cluster"}
    settings = {
        "attention_width",
        "queries",
        "attention_batch_norm",
        "class_embedding",
        "attribute_conditioned",
        "refine",
    }

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.attributes = AttributeAttention(
            C, taxonomy.num_attributes, model.attention_width, model.queries, model.attention_batch_norm
        )
        self.heads = ClassHeads(C, self.sizes)
        # C; small beside its parent, so that the classes of one attribute start alike
        self.table = QueryTable(M, model.attention_width, "learned", 0.02 if model.attribute_conditioned else 1.0)
        self.parent = (
            nn.Linear(self.attributes.table.width, model.attention_width, bias=False)
            if model.attribute_conditioned
            else None
        )  # W
        self.classes = ClassBranch(C, model, model.attention_width, context=C)
        self.head = nn.Parameter(torch.zeros(M, C))  # v: the class evidence starts from nothing, and refines
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)
        self.refine = model.refine

    def class_table(self) -> Tensor:
        """(M, h) the class queries c_m."""
        if self.parent is None:
            return self.table.rows
        return self.table.rows + self.parent(self.attributes.table.rows)[self.attribute_of_class]

    def forward(self, images: Tensor, wanted: Tensor | None = None) -> Outputs:
        X, table = self.backbone(images), self.class_table()  # (B, P, C), (M, h)
        maps, gate, h = self.attributes(X)  # (B, N, P), (B, N, C), (B, N, C)
        prior = spread(torch.log1p(maps.shape[2] * maps), self.sizes) if self.refine else None  # (B, M, P)
        class_maps = self.classes.spatial(X, table, prior)  # (B, M, P)
        seen = F.linear(X, self.head)  # (B, P, M): v_m . X, which is pooled instead of X
        logits = self.heads(h) + (class_maps * seen.mT).sum(dim=2)  # (B, M)
        sizes = self.split(wanted)
        context = spread(self.classes.channel.read_context(h), sizes)  # (B, K, h)
        kept = self.classes.keep(X, chosen(class_maps, 1, wanted), chosen(table, 0, wanted), context)  # (B, K, C)
        if self.refine:
            kept = kept * spread(gate, sizes)
        phi = unit(self.classes.reduce(kept))  # (B, K, d)
        return Outputs(unit(h), None, logits, phi, maps, class_maps, wanted)
