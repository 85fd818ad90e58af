"""The systems: one small class each over a shared backbone.

Every network takes images (B, 3, H, W) and returns `Outputs`; what a network does not give is None. Letters: B images,
C channels, P = positions of the stride-16 feature map, N attributes, M classes, h attention width, D and d the sizes of
attribute and class-specific embeddings. ASEN follows its released code; M3-Net has no released code, and its class is a
reconstruction from the poster, with every open point decided in its docstring.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3lib.attention import ChannelAttention, SpatialAttention
from m3lib.config import Model, Variant
from m3lib.errors import InputError
from m3lib.losses import Centers, positive_weights
from m3lib.taxonomy import Taxonomy, nearest

STRIDE = 16  # the trunk up to ResNet's layer3, as in all published systems


class Outputs(NamedTuple):
    attribute: Tensor | None = None  # (B, N, D) unit rows: f_n
    logits: Tensor | None = None  # (B, M) of the class probabilities x_m
    classes: Tensor | None = None  # (B, M, d) unit rows: phi_m
    attribute_maps: Tensor | None = None  # (B, N, P) attention, sums to 1
    class_maps: Tensor | None = None  # (B, M, P) attention, sums to 1


class Backbone(nn.Module):
    """A timm model up to its stride-16 features, as (B, P, C)."""

    def __init__(self, settings: Model):
        super().__init__()
        self.trunk = create_trunk(settings)
        self.channels = self.trunk.feature_info.channels()[-1]

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk(images)[-1].flatten(2).mT  # (B, P, C)


def create_trunk(settings: Model) -> nn.Module:
    """timm's feature extractor; raises InputError for a name, an option, or weights that it can't use."""
    import timm  # imported here: it takes seconds, and evaluation does without

    name = settings.backbone
    nearest(name.split(".")[0], timm.list_models(), "backbone (model.backbone, any timm model)")
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.backbone_options.items()}
    if settings.weights:
        options["pretrained_cfg_overlay"] = {"file": settings.weights}
    wanted = settings.pretrained or bool(settings.weights)
    try:
        reductions = timm.create_model(name, features_only=True, **settings_only(options)).feature_info.reduction()
    except Exception as error:  # timm raises whatever its parts do
        raise InputError(f"model.backbone_options {settings.backbone_options} don't fit {name!r}: {error}") from None
    if STRIDE not in reductions:
        raise InputError(f"model.backbone {name!r} gives features of stride {reductions}, none of {STRIDE}")
    level = reductions.index(STRIDE)
    try:
        return timm.create_model(name, pretrained=wanted, features_only=True, out_indices=(level,), **options)
    except Exception as error:  # hub and file errors come in many types
        where = settings.weights or f"timm's hub for {name!r}"
        advice = "check model.weights" if settings.weights else "fetch the weight file by hand and set model.weights"
        raise InputError(
            f"no weights from {where} ({(str(error) or type(error).__name__).splitlines()[0]}); {advice}"
        ) from None


def settings_only(options: dict) -> dict:
    return {key: value for key, value in options.items() if key != "pretrained_cfg_overlay"}


class System(nn.Module):
    """What the systems share: the backbone, the taxonomy's shape, and the positive weights of Loss 1."""

    gives: frozenset[str] = frozenset()  # which of Outputs' embeddings: attribute, logits, classes

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__()
        self.backbone = Backbone(variant.model)
        self.sizes = [len(attribute.classes) for attribute in taxonomy.attributes]
        self.register_buffer("attribute_of_class", torch.from_numpy(taxonomy.attribute_of_class), persistent=False)
        self.register_buffer("positive_weight", torch.ones(taxonomy.num_classes))
        self.register_buffer("multi", torch.tensor([a.multi for a in taxonomy.attributes]), persistent=False)

    def count_classes(self, labels: Tensor, power: float) -> None:
        """Set w_p from the training labels (I, M)."""
        self.positive_weight.copy_(positive_weights(labels, self.attribute_of_class, power))

    def posterior(self, logits: Tensor) -> Tensor:
        """(B, M) class probabilities, with the shift that w_p gives to the optimum of Loss 1 taken back.

        The minimum of the weighted loss is at logit(x) = logit(p) + log w_p. An attribute with one class per image
        gets a softmax over its classes, the others a sigmoid each.
        """
        logits = logits.float() - self.positive_weight.log()
        parts = logits.split(self.sizes, dim=1)
        return torch.cat(
            [part.sigmoid() if m else part.softmax(1) for part, m in zip(parts, self.multi, strict=True)], 1
        )


class Classifier(System):
    """The plain row: pooled features and one linear layer for all classes."""

    gives = frozenset({"logits"})

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.head = nn.Linear(self.backbone.channels, taxonomy.num_classes)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(logits=self.head(self.backbone(images).mean(dim=1)))


class ASEN(System):
    """ASEN (AAAI 2020), after class ASENet of its released code: attention from a one-hot attribute.

    Its two linear layers of a one-hot vector are written as the learned tables that they are. The tanh around the
    spatial logits is in the released code; it bounds the attention's contrast to a ratio of e^2.
    """

    gives = frozenset({"attribute"})

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, h, N = self.backbone.channels, variant.model.hidden, taxonomy.num_attributes
        self.project = nn.Linear(C, h)  # a 1x1 convolution
        self.spatial_query = one_hot_table(N, h)
        self.spatial_logit = nn.Linear(h, 1)
        self.channel_query = one_hot_table(N, C)
        self.channel_gate = nn.Sequential(nn.Linear(2 * C, h), nn.ReLU(), nn.Linear(h, C), nn.Sigmoid())
        self.output = nn.Linear(C, variant.model.embedding)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        U = torch.tanh(self.project(X))  # (B, P, h)
        # the logit is linear in a_n * U, so its weights are folded into the queries: no (B, N, P, h) tensor
        query = torch.tanh(self.spatial_query) * self.spatial_logit.weight  # (N, h)
        logits = torch.tanh(query @ U.mT + self.spatial_logit.bias)  # (B, N, P)
        maps = logits.float().softmax(dim=-1)
        z = maps.to(X.dtype) @ X  # (B, N, C)
        r = torch.relu(self.channel_query).expand(len(z), -1, -1)  # (B, N, C)
        h = z * self.channel_gate(torch.cat([z, r.to(z.dtype)], dim=2))  # (B, N, C)
        return Outputs(attribute=unit(self.output(h)), attribute_maps=maps)


class AttributeBranch(nn.Module):
    """M3-Net's attribute sub-network: ASEN_v2's two attentions, then one logit per class from h_n."""

    def __init__(self, channels: int, hidden: int, sizes: list[int]):
        super().__init__()
        self.sizes = sizes
        self.table = nn.Parameter(torch.randn(len(sizes), hidden))  # A, the attributes' embeddings
        self.spatial = SpatialAttention(channels, hidden)
        self.channel = ChannelAttention(channels, hidden)
        self.head = nn.Linear(channels, sum(sizes))

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """X (B, P, C) to maps (B, N, P), gate (B, N, C), h (B, N, C), logits (B, M)."""
        maps = self.spatial(X, self.table)
        z = maps.to(X.dtype) @ X  # (B, N, C)
        gate = self.channel(z, self.table)
        h = z * gate
        heads = zip(self.head.weight.split(self.sizes), self.head.bias.split(self.sizes), strict=True)
        logits = [F.linear(h[:, n], weight, bias) for n, (weight, bias) in enumerate(heads)]
        return maps, gate, h, torch.cat(logits, dim=1)


class M3NetA(System):
    """M3-Net_a: attention by attribute alone; class spaces are learned masks on the attribute embedding.

    phi_m = L2(ReLU(mask_m) * FC h_n), masks initialised N(0.9, 0.7) as in conditional similarity networks.
    """

    gives = frozenset({"attribute", "logits", "classes"})

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, d, M = self.backbone.channels, variant.model.class_embedding, taxonomy.num_classes
        self.attributes = AttributeBranch(C, variant.model.hidden, self.sizes)
        self.reduce = nn.Linear(C, d)
        self.mask = nn.Parameter(0.9 + 0.7 * torch.randn(M, d))
        self.centers = Centers(M, d, variant.loss.center_momentum)

    def forward(self, images: Tensor) -> Outputs:
        maps, _, h, logits = self.attributes(self.backbone(images))
        shared = self.reduce(h)[:, self.attribute_of_class]  # (B, M, d)
        return Outputs(unit(h), logits, unit(shared * torch.relu(self.mask)), attribute_maps=maps)


class ClassBranch(nn.Module):
    """M3-Net's class sub-network: for each class, where to look, which channels to keep, and an embedding phi_m."""

    def __init__(self, channels: int, hidden: int, dim: int, sizes: list[int], context: int):
        super().__init__()
        self.sizes = sizes
        self.spatial = SpatialAttention(channels, hidden)
        self.channel = ChannelAttention(channels, hidden, context)
        self.reduce = nn.Linear(channels, dim)

    def attend(self, refined: Tensor, table: Tensor) -> Tensor:
        """Maps (B, M, P); refined (B, N, P, C): a class reads the features of its own attribute; table (M, h)."""
        keys = self.spatial.keys(refined)  # (B, N, P, h)
        queries = self.spatial.queries(table).split(self.sizes)  # N of (M_n, h)
        logits = torch.cat([query @ keys[:, n].mT for n, query in enumerate(queries)], dim=1)  # (B, M, P)
        return logits.float().softmax(dim=-1)


class M3NetC(System):
    """M3-Net_c: attention by class alone, on the backbone's features; no attribute embedding."""

    gives = frozenset({"logits", "classes"})

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, h, d = self.backbone.channels, variant.model.hidden, variant.model.class_embedding
        self.table = nn.Parameter(torch.randn(taxonomy.num_classes, h))  # C, the classes' embeddings
        self.classes = ClassBranch(C, h, d, [taxonomy.num_classes], context=0)  # one group: all read the same features
        self.head = nn.Parameter(torch.randn(taxonomy.num_classes, C) / C**0.5)
        self.bias = nn.Parameter(torch.zeros(taxonomy.num_classes))
        self.centers = Centers(taxonomy.num_classes, d, variant.loss.center_momentum)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        maps = self.classes.attend(X[:, None], self.table)  # (B, M, P)
        u = maps.to(X.dtype) @ X  # (B, M, C)
        kept = u * self.classes.channel(u, self.table)  # (B, M, C)
        logits = (kept * self.head).sum(dim=2) + self.bias  # (B, M)
        return Outputs(None, logits, unit(self.classes.reduce(kept)), class_maps=maps)


class M3Net(System):
    """M3-Net: the attribute sub-network refines the features, the class sub-network reads what was kept.

    Class queries carry their attribute's as a parent: c_m = C_m + W A_n (the taxonomy as prior). The features handed on
    are X'_n = X * (1 + P alpha_n) / 2 * gate_n: positions and channels that the attribute attention kept. A class
    probability sums the evidence of both sub-networks, as M3-Net_a and M3-Net_c have one each: the poster leaves open
    which one it comes from, and the sum ranked better on validation than the attribute's alone.
    """

    gives = frozenset({"attribute", "logits", "classes"})

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        C, h, d = self.backbone.channels, variant.model.hidden, variant.model.class_embedding
        self.attributes = AttributeBranch(C, h, self.sizes)
        self.table = nn.Parameter(0.02 * torch.randn(taxonomy.num_classes, h))  # C
        self.parent = nn.Linear(h, h, bias=False)  # W
        self.classes = ClassBranch(C, h, d, self.sizes, context=C)
        self.head = nn.Parameter(torch.randn(taxonomy.num_classes, C) / C**0.5)
        self.centers = Centers(taxonomy.num_classes, d, variant.loss.center_momentum)

    def forward(self, images: Tensor) -> Outputs:
        X = self.backbone(images)  # (B, P, C)
        maps, gate, h, logits = self.attributes(X)  # (B, N, P), (B, N, C), (B, N, C), (B, M)
        focus = ((1 + maps.shape[2] * maps) / 2).to(X.dtype)  # (B, N, P), mean 1
        refined = X[:, None] * focus[..., None] * gate[:, :, None]  # (B, N, P, C)
        table = self.table + self.parent(self.attributes.table)[self.attribute_of_class]  # (M, h)
        class_maps = self.classes.attend(refined, table)  # (B, M, P)
        own = self.attribute_of_class
        u = (class_maps.to(X.dtype) * focus[:, own]) @ X * gate[:, own]  # (B, M, C), the maps' sums of X'_n
        context = self.classes.channel.read_context(h)[:, own]  # (B, M, h)
        kept = u * self.classes.channel(u, table, context)  # (B, M, C)
        logits = logits + (kept * self.head).sum(dim=2)
        return Outputs(unit(h), logits, unit(self.classes.reduce(kept)), maps, class_maps)


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32: similarities of bf16 rows would be coarse."""
    return F.normalize(x.float(), dim=-1)


def one_hot_table(num_attributes: int, width: int) -> nn.Parameter:
    """The weight of a bias-free linear layer of a one-hot vector, with that layer's initial range."""
    bound = num_attributes**-0.5
    return nn.Parameter(torch.empty(num_attributes, width).uniform_(-bound, bound))


NETWORKS = {"classifier": Classifier, "asen": ASEN, "m3_a": M3NetA, "m3_c": M3NetC, "m3": M3Net}

NEEDS = {  # what a loss or a score reads of Outputs
    "loss.attribute": "attribute",
    "loss.classification": "logits",
    "loss.instance": "classes",
    "loss.cluster": "classes",
    "score attribute": "attribute",
    "score posterior": "logits",
    "score concat": "classes",
    "score top_class": "classes",
    "score weighted": "classes",
}


def check_variant(variant: Variant) -> None:
    """Raise InputError for a network that can't give what its losses and score read."""
    network = NETWORKS[variant.network]
    losses = [f"loss.{k}" for k in ("attribute", "classification", "instance", "cluster") if getattr(variant.loss, k)]
    if not losses:
        raise InputError(f"params.yaml, systems.{variant.name}: every loss has weight 0, nothing would be trained")
    for use in [*losses, f"score {variant.score}"]:
        if NEEDS[use] not in network.gives:
            raise InputError(
                f"params.yaml, systems.{variant.name}: {use} needs {NEEDS[use]} outputs, which {variant.network} does "
                f"not give ({', '.join(sorted(network.gives))})"
            )


def build(variant: Variant, taxonomy: Taxonomy) -> System:
    """The network of one row of the comparison, freshly initialised from torch's global seed."""
    check_variant(variant)
    return NETWORKS[variant.network](variant, taxonomy)
