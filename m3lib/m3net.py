"""M3-Net and its two halves (CVPR 2023): a reconstruction from the poster, every open point decided in a docstring.

Fixed by the poster: two sub-networks (attributes, classes) with attention of their own, progressive refinement, the
taxonomy as prior, and Losses 1 to 3 (`losses.py`). Built here from ASEN_v2's attention block, so that what differs from
the earlier systems is the idea and not the parts. Letters as in system.py.
"""

import torch
from torch import Tensor, nn

from m3lib.attention import AttributeAttention, ChannelAttention, ClassHeads, QueryTable, SpatialAttention, unit
from m3lib.config import Model, Variant
from m3lib.losses import Centers
from m3lib.system import Outputs, System
from m3lib.taxonomy import Taxonomy


class M3NetA(System):
    """M3-Net_a: attention by attribute alone; class spaces are learned masks on the attribute embedding.

    phi_m = L2(ReLU(mask_m) * FC h_n), masks initialised N(0.9, 0.7) as in conditional similarity networks.
    """

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model.hidden, model.queries, model.norm)
        self.heads = ClassHeads(C, self.sizes)
        self.reduce = nn.Linear(C, model.class_embedding)
        self.mask = nn.Parameter(0.9 + 0.7 * torch.randn(M, model.class_embedding))
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor) -> Outputs:
        maps, _, h = self.attributes(self.backbone(images))
        shared = spread(self.reduce(h), self.sizes)  # (B, M, d)
        phi = unit(shared * torch.relu(self.mask))
        return Outputs(unit(h), logits=self.heads(h), classes=phi, attribute_maps=maps)


class ClassBranch(nn.Module):
    """M3-Net's class sub-network: for each class, where to look, which channels to keep, and an embedding phi_m."""

    def __init__(self, channels: int, model: Model, width: int, context: int):
        super().__init__()
        self.spatial = SpatialAttention(channels, model.hidden, width, model.norm)
        self.channel = ChannelAttention(channels, model.hidden, width, context)
        self.reduce = nn.Linear(channels, model.class_embedding)

    def forward(
        self, X: Tensor, table: Tensor, prior: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """X (B, P, C), table (M, h) to maps (B, M, P) and what each class keeps (B, M, C).

        prior (B, M, P) and context (B, M, h): see SpatialAttention and ChannelAttention.
        """
        maps = self.spatial(X, table, prior)
        shares, read = maps.to(X.dtype), self.channel.read_pooled
        pooled = shares @ X  # (B, M, C)
        # A map sums to 1, so that pooling and a linear layer may change places: the fewer rows are read.
        told = shares @ read(X) if len(table) > X.shape[1] else read(pooled)  # (B, M, h)
        return maps, pooled * self.channel.gate(told, table, context)


def spread(x: Tensor, sizes: list[int]) -> Tensor:
    """(B, M, ...): each class gets its attribute's row of x (B, N, ...). Its gradient is a sum, where an index's is a
    scatter that runs on one core."""
    return torch.cat([part.expand(-1, size, -1) for part, size in zip(x.split(1, dim=1), sizes, strict=True)], dim=1)


def evidence(kept: Tensor, head: Tensor) -> Tensor:
    """(B, M) logits of what each class keeps, (B, M, C), by its own row of head (M, C), in the precision of `kept`."""
    return (kept * head.to(kept.dtype)).sum(dim=2)


class M3NetC(System):
    """M3-Net_c: attention by class alone, on the backbone's features; no attribute embedding."""

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.table = QueryTable(M, model.hidden, "learned")  # C, the classes' embeddings
        self.classes = ClassBranch(C, model, model.hidden, context=0)
        self.head = nn.Parameter(torch.randn(M, C) / C**0.5)
        self.bias = nn.Parameter(torch.zeros(M))
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor) -> Outputs:
        maps, kept = self.classes(self.backbone(images), self.table.rows)  # (B, M, P), (B, M, C)
        logits = evidence(kept, self.head) + self.bias  # (B, M)
        return Outputs(logits=logits, classes=unit(self.classes.reduce(kept)), class_maps=maps)


class M3Net(System):
    """M3-Net: the attribute sub-network refines the features, the class sub-network reads what was kept.

    Class queries carry their attribute's as a parent: c_m = C_m + W A_n (the taxonomy as prior; model.parent). The
    refinement goes from coarse to fine (model.refine): a class looks where its attribute looked, its map being the
    softmax of its own logits + log(1 + P alpha_n), and keeps of the channels that its attribute kept, u_m * gate_n.
    Refined so, the features are read once for all attributes; features refined before they are read, X * (1 + P
    alpha_n) / 2 * gate_n, are read once an attribute and ranked no better. The channel attention of a class also reads
    the attribute's representation h_n of the image. A class probability sums the evidence of both sub-networks, as
    M3-Net_a and M3-Net_c have one each: the poster leaves open which one it comes from, and the sum ranked better on
    validation than the attribute's alone.
    """

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model.hidden, model.queries, model.norm)
        self.heads = ClassHeads(C, self.sizes)
        # C; small beside its parent, so that the classes of one attribute start alike
        self.table = QueryTable(M, model.hidden, "learned", 0.02 if model.parent else 1.0)
        self.parent = nn.Linear(self.attributes.table.width, model.hidden, bias=False) if model.parent else None  # W
        self.classes = ClassBranch(C, model, model.hidden, context=C)
        self.head = nn.Parameter(torch.zeros(M, C))  # the class evidence starts from nothing, and refines
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)
        self.refine = model.refine

    def class_table(self) -> Tensor:
        """(M, h) the class queries c_m."""
        if self.parent is None:
            return self.table.rows
        return self.table.rows + self.parent(self.attributes.table.rows)[self.attribute_of_class]

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        maps, gate, h = self.attributes(X)  # (B, N, P), (B, N, C), (B, N, C)
        prior = spread(torch.log1p(maps.shape[2] * maps), self.sizes) if self.refine else None  # (B, M, P)
        context = spread(self.classes.channel.read_context(h), self.sizes)  # (B, M, h)
        class_maps, kept = self.classes(X, self.class_table(), prior, context)  # (B, M, P), (B, M, C)
        if self.refine:
            kept = kept * spread(gate, self.sizes)
        logits = self.heads(h) + evidence(kept, self.head)  # (B, M)
        phi = unit(self.classes.reduce(kept))  # (B, M, d)
        return Outputs(unit(h), None, logits, phi, maps, class_maps)
