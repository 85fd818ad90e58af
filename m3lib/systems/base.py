"""What all networks share: their outputs, the class probabilities, and the two plain classifiers.

Every network takes images (B, 3, H, W) in [0, 1], or what the frozen blocks of its backbone made of them, and returns
`Outputs`. Each class declares what the settings may combine it with: `outputs` (the fields it always fills, and
"centers" if it keeps class centers for retrieval), `losses` (the losses that can train it) and `settings` (what it
reads of `model`, beside what every network reads for its backbone).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from m3lib.compatibility import outputs_of
from m3lib.config import Loss, Variant
from m3lib.systems.attention import ClassHeads
from m3lib.systems.backbone import Backbone
from m3lib.taxonomy import Taxonomy


class Outputs(NamedTuple):
    """What a network computes for a batch; a field is None if the network does not have it."""

    attribute: Tensor | None = None  # (B, N, D) unit attribute embeddings f_n
    local: Tensor | None = None  # (B, N, D) unit attribute embeddings of ASEN++'s local branch
    logits: Tensor | None = None  # (B, M) class logits o_m
    classes: Tensor | None = None  # (B, M, d) unit class-specific embeddings phi_m; (B, K, d) of selected classes
    attribute_maps: Tensor | None = None  # (B, N, P) attention alpha_n, each map sums to 1
    class_maps: Tensor | None = None  # (B, M, P) attention alpha_m, each map sums to 1
    class_ids: Tensor | None = None  # (K,) int64, ascending: the classes of the field `classes`; None: all M


class System(nn.Module):
    """The base class of every network; `variant` is its row of params.yaml."""

    pooled = False  # whether the backbone is a whole model with pooled output, see `Backbone`
    views = 1  # 2: embeddings are those of an image and its mirror image, averaged

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__()
        model = variant.model
        self.backbone = Backbone(
            model.backbone,
            model.backbone_options,
            model.pretrained,
            model.weights,
            model.input_scale,
            trainable=model.trainable,
            pooled=self.pooled,
        )
        self.class_counts = [len(attribute.classes) for attribute in taxonomy.attributes]  # N numbers M_n
        self.register_buffer("attribute_of_class", torch.from_numpy(taxonomy.attribute_of_class), persistent=False)
        # w of Loss 1 and of duet_classification, set by the trainer; 1 for other losses
        self.register_buffer("positive_weight", torch.ones(taxonomy.num_classes))
        self.register_buffer("multi", torch.tensor([a.multi for a in taxonomy.attributes]), persistent=False)

    def class_heads(self, variant: Variant, dim: int) -> ClassHeads | None:
        """Return heads for class logits if a loss trains them; the published ASEN family and MODC have none."""
        return ClassHeads(dim, self.class_counts) if "logits" in outputs_of(variant) else None

    def enter_stage(self, loss: Loss) -> None:
        """Prepare for a stage with these losses; called before each epoch. ASEN++ starts its local branch here."""

    def reads_pixels(self) -> bool:
        """Whether the network reads images also where its backbone's frozen blocks have been computed before."""
        return False

    def retrieval_embedding(self, outputs: Outputs) -> Tensor | None:
        """Return the attribute embedding that retrieval compares: (B, N, D) unit rows."""
        return outputs.attribute

    def class_probabilities(self, outputs: Outputs) -> Tensor | None:
        """Return (B, M) class probabilities: softmax over an attribute's classes, or sigmoids if it is multi-label.

        A loss with weighted positives is minimal at logit(p) + log w, so log w is subtracted first.
        """
        if outputs.logits is None:
            return None
        logits = (outputs.logits.float() - self.positive_weight.log()).split(self.class_counts, dim=1)
        pairs = zip(logits, self.multi, strict=True)
        return torch.cat([part.sigmoid() if multi else part.softmax(dim=1) for part, multi in pairs], dim=1)


class Classifier(System):
    """The plain baseline: average-pooled features and one linear layer for all classes."""

    outputs = {"logits"}
    losses = {"classification", "m3_classification"}
    settings = set()

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.head = nn.Linear(self.backbone.channels, taxonomy.num_classes)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(logits=self.head(self.backbone(images).mean(dim=1)))


class Frozen(System):
    """The first thing that anyone would try: a linear layer on the pooled features of a whole, frozen model."""

    outputs = {"logits"}
    losses = {"classification", "m3_classification"}
    settings = set()
    pooled = True

    def __init__(self, variant: Variant, taxonomy: Taxonomy):
        super().__init__(variant, taxonomy)
        self.norm = nn.BatchNorm1d(self.backbone.channels)  # brings all features to one scale
        self.head = nn.Linear(self.backbone.channels, taxonomy.num_classes)

    def forward(self, images: Tensor) -> Outputs:
        return Outputs(logits=self.head(self.norm(self.backbone(images).flatten(1))))
