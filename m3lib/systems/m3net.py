"""M3-Net and its two halves (CVPR 2023), reconstructed from the poster; we chose what the poster leaves open.

The poster fixes: two sub-networks (attributes, classes) with separate attention, progressive refinement, the taxonomy
as prior, and Losses 1 to 3 (`losses.py`). The attention is ASEN_v2's, so that M3-Net differs from the earlier systems
by its idea and not by its building blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.config import Model, Variant
from m3lib.systems.attention import AttributeAttention, ChannelAttention, ClassHeads, QueryTable, SpatialAttention, unit
from m3lib.systems.base import Outputs, System
from m3lib.systems.losses import Centers
from m3lib.taxonomy import Taxonomy


class M3Net(System):
    """M3-Net: the attribute sub-network refines the features, the class sub-network embeds what it selected.

    X = backbone(image), with features x_p at position p. For each attribute n with query A_n:

        alpha_n = softmax_p <A_n, x_p>                          where the attribute shows
        z_n = sum_p alpha_np x_p
        h_n = z_n * gate_n,  gate_n = channels(z_n, A_n)        which channels describe it
        f_n = L2(h_n)                                           attribute embedding

    For each class m of attribute n:

        c_m = norm(C_m) + norm(W A_n)                           query, conditioned on the attribute's
        alpha_m = softmax_p(<c_m, x_p> + log(1 + P alpha_np))   where the class shows, refining alpha_n
        u_m = sum_p alpha_mp x_p
        gate_m = channels(u_m, c_m, h_n)                        which channels describe it
        phi_m = L2(W_m (u_m * gate_m * gate_n))                 class-specific embedding (`ClassProjection`)
        x_m = sigmoid(w_m . h_n + b_m + v_m . u_m)              class probability

    model.refine: false drops alpha_np from alpha_m and gate_n from phi_m; model.attribute_conditioned: false drops
    W A_n. Refining X itself, X * (1 + P alpha_n) / 2 * gate_n, would need one projection per attribute and gave no
    better MAP. The poster leaves open which sub-network predicts x_m: we add the evidence of both.

    The poster also leaves open how phi_m depends on m. Left to its query alone it hardly does: W A_n outgrows C_m, and
    one FC for all classes then yields one embedding, repeated for every class of an attribute (the row m3_shared). So
    both parts of the query have the same length (norm: mean 0, variance 1), and every class has its own projection.
    """

    outputs = {"attribute", "logits", "classes"}
    losses = {"asen_triplet", "classification", "m3_classification", "evidence", "m3_instance", "m3_cluster"}
    settings = {
        "attention_width", "queries", "attention_batch_norm", "class_embedding", "class_projection",
        "normalise_queries", "attribute_conditioned", "refine",
    }  # fmt: skip

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        h, conditioned, self.refine = model.attention_width, model.attribute_conditioned, model.refine
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model)
        self.heads = ClassHeads(C, self.class_counts)  # w, b
        self.normalise = model.normalise_queries
        # C_m; without norm it starts small beside W A_n, so that the queries of an attribute's classes are close
        self.table = QueryTable(M, h, "learned", 0.02 if conditioned and not self.normalise else 1.0)
        self.parent = nn.Linear(self.attributes.table.width, h, bias=False) if conditioned else None  # W
        self.classes = ClassBranch(C, model, M, context=C)
        self.head = nn.Parameter(torch.zeros(M, C))  # v, zero: at first, logits come from the attribute branch only
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor, class_ids: Tensor | None = None) -> Outputs:
        """class_ids: (K,) ascending, the classes to embed; None embeds all (see `select_classes`)."""
        counts = classes_per_attribute(self.attribute_of_class, class_ids)
        X, queries = self.backbone(images), self.class_queries()  # (B, P, C), (M, h)
        alpha_n, gate_n, h_n = self.attributes(X)  # (B, N, P), (B, N, C), (B, N, C)
        log_prior = None
        if self.refine:
            log_prior = repeat_per_class(torch.log1p(X.shape[1] * alpha_n), self.class_counts)  # (B, M, P)
        alpha_m = self.classes.spatial(X, queries, log_prior)  # (B, M, P)
        # v_m . u_m pools v_m . x_p, one number per class and position, instead of x_p
        logits = self.heads(h_n) + (alpha_m * F.linear(X, self.head).mT).sum(dim=2)  # (B, M)

        context = repeat_per_class(self.classes.channel.read_context(h_n), counts)  # (B, K, h)
        maps, queries = select_classes(alpha_m, 1, class_ids), select_classes(queries, 0, class_ids)
        u_m = self.classes.gated_pool(X, maps, queries, context)  # (B, K, C): u_m * gate_m
        if self.refine:
            u_m = u_m * repeat_per_class(gate_n, counts)
        phi_m = unit(self.classes.project(u_m, class_ids))  # (B, K, d)
        return Outputs(unit(h_n), None, logits, phi_m, alpha_n, alpha_m, class_ids)

    def class_queries(self) -> Tensor:
        """Return c_m (M, h)."""
        parts = [self.table.rows]
        if self.parent is not None:
            parts.append(self.parent(self.attributes.table.rows)[self.attribute_of_class])
        return sum(F.layer_norm(part, part.shape[1:]) if self.normalise else part for part in parts)


class M3NetA(System):
    """M3-Net_a: attention by attribute only; phi_m = L2(W_m h_n), a projection of h_n per class (`ClassProjection`)."""

    outputs = {"attribute", "logits", "classes"}
    losses = {"asen_triplet", "classification", "m3_classification", "evidence", "m3_instance", "m3_cluster"}
    settings = {"attention_width", "queries", "attention_batch_norm", "class_embedding", "class_projection"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.attributes = AttributeAttention(C, taxonomy.num_attributes, model)
        self.heads = ClassHeads(C, self.class_counts)
        self.project = ClassProjection(C, M, model)
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor, class_ids: Tensor | None = None) -> Outputs:
        alpha_n, _, h_n = self.attributes(self.backbone(images))
        counts = classes_per_attribute(self.attribute_of_class, class_ids)
        phi_m = unit(self.project(repeat_per_class(h_n, counts), class_ids))  # (B, K, d)
        return Outputs(unit(h_n), None, self.heads(h_n), phi_m, alpha_n, class_ids=class_ids)


class M3NetC(System):
    """M3-Net_c: attention by class only, on the backbone's features; there is no attribute embedding.

    alpha_m and u_m as in M3-Net without refinement; x_m = sigmoid(v_m . (u_m * gate_m) + b_m).
    """

    outputs = {"logits", "classes"}
    losses = {"classification", "m3_classification", "evidence", "m3_instance", "m3_cluster"}
    settings = {"attention_width", "attention_batch_norm", "class_embedding", "class_projection"}

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, model, M = self.backbone.channels, variant.model, taxonomy.num_classes
        self.table = QueryTable(M, model.attention_width, "learned")  # the class queries c_m
        self.classes = ClassBranch(C, model, M, context=0)
        self.head = nn.Parameter(torch.randn(M, C) / C**0.5)
        self.bias = nn.Parameter(torch.zeros(M))
        self.centers = Centers(M, model.class_embedding, variant.loss.center_momentum)

    def forward(self, images: Tensor, class_ids: Tensor | None = None) -> Outputs:
        X, queries = self.backbone(images), self.table.rows  # (B, P, C), (M, h)
        alpha_m = self.classes.spatial(X, queries)  # (B, M, P)
        u_m = self.classes.gated_pool(X, alpha_m, queries)  # (B, M, C) of all classes, since Loss 1 reads them
        logits = (u_m * self.head.to(u_m.dtype)).sum(dim=2) + self.bias  # (B, M)
        phi_m = unit(self.classes.project(select_classes(u_m, 1, class_ids), class_ids))  # (B, K, d)
        return Outputs(logits=logits, classes=phi_m, class_maps=alpha_m, class_ids=class_ids)


class ClassBranch(nn.Module):
    """M3-Net's class sub-network: for each class where to look, which channels to use, and an embedding phi_m."""

    def __init__(self, channels: int, model: Model, num_classes: int, context: int):
        super().__init__()
        h = model.attention_width
        self.spatial = SpatialAttention(channels, h, h, model.attention_batch_norm)
        self.channel = ChannelAttention(channels, h, h, context)
        self.project = ClassProjection(channels, num_classes, model)

    def gated_pool(self, X: Tensor, maps: Tensor, queries: Tensor, context: Tensor | None = None) -> Tensor:
        """Pool X (B, P, C) by each class's map (B, K, P), then apply its channel gate; returns (B, K, C).

        queries: (K, h); context: (B, K, h). A map sums to 1, so pooling commutes with the affine layer `read_pooled`:
        it is applied to whichever has fewer rows, positions or classes.
        """
        maps, project = maps.to(X.dtype), self.channel.read_pooled
        pooled = maps @ X  # (B, K, C)
        projected = maps @ project(X) if len(queries) > X.shape[1] else project(pooled)  # (B, K, h)
        return pooled * self.channel.gate(projected, queries, context)


class ClassProjection(nn.Module):
    """P_m x: the projection of a class's features x, of size C, to its embedding of size d (before L2).

    own: P_m = W_m, a matrix per class (C d numbers per class)
    factored: P_m = R_m V, a shared V (d x C) and a matrix R_m (d x d) per class (d d numbers; for wide backbones)
    masked: P_m = diag(ReLU(mask_m)) V, with masks from N(0.9, 0.7) as in conditional similarity networks (d numbers)
    shared: P_m = V, the same for all classes
    """

    def __init__(self, channels: int, num_classes: int, model: Model):
        super().__init__()
        d, kind = model.class_embedding, model.class_projection
        self.shared = None if kind == "own" else nn.Linear(channels, d)  # V
        self.mask = nn.Parameter(0.9 + 0.7 * torch.randn(num_classes, d)) if kind == "masked" else None
        inputs = {"own": channels, "factored": d}.get(kind)
        self.own = nn.Parameter(torch.randn(num_classes, inputs, d) / inputs**0.5) if inputs else None  # W_m or R_m

    def forward(self, x: Tensor, class_ids: Tensor | None) -> Tensor:
        """Return (B, K, d) from x (B, K, C) of the classes class_ids (K,); None: all M."""
        if self.shared is not None:
            x = self.shared(x)
        if self.mask is not None:
            x = x * torch.relu(select_classes(self.mask, 0, class_ids))
        if self.own is not None:
            x = torch.einsum("bkc,kcd->bkd", x, select_classes(self.own, 0, class_ids).to(x.dtype))
        return x


def select_classes(x: Tensor, dim: int, class_ids: Tensor | None) -> Tensor:
    """Return the classes class_ids (K,) of x, which holds all M along `dim`; None returns all.

    The losses of a batch compare images in the spaces of the classes that the batch contains, often few of M, so
    training embeds only these.
    """
    if class_ids is None or len(class_ids) == x.shape[dim]:
        return x
    return x.index_select(dim, class_ids.to(x.device))


def classes_per_attribute(attribute_of_class: Tensor, class_ids: Tensor | None) -> list[int]:
    """Return how many of the selected classes (K,) each attribute has; None counts all classes."""
    selected = select_classes(attribute_of_class, 0, class_ids)
    return selected.bincount(minlength=int(attribute_of_class[-1]) + 1).tolist()


def repeat_per_class(x: Tensor, counts: list[int]) -> Tensor:
    """Return (B, K, ...): row n of x (B, N, ...), once for each of the counts[n] classes of attribute n.

    As x[:, attribute_of_class], whose gradient would be a scatter on one core; this one's gradient is a sum.
    """
    rows = zip(x.split(1, dim=1), counts, strict=True)
    return torch.cat([row.expand(-1, count, -1) for row, count in rows], dim=1)
